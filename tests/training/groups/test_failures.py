"""Errors belong to a cell, to its group, to its run or to the process: what each does, and to whom."""

from __future__ import annotations

import errno
import functools
import importlib
import io
import json
import os
import resource
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers.training_bench import EPOCHS, PROTOCOL, REPO, Result, TrainingBench, tiny_data
from helpers.watchers import CellEvent, kind
from torch import Tensor

from benchmarks.common.events import LeftOut, Said
from benchmarks.common.memory import out_of_memory
from benchmarks.config.recipe import Optimizer
from benchmarks.driver import progress
from benchmarks.driver.engines import local
from benchmarks.driver.progress import Reporter
from benchmarks.tasks import TaskBatch
from benchmarks.tasks.images import ImageData
from benchmarks.training.failures import Diverged, Interrupted, Refused, Unfit, of_cell, whatever_the_method
from kd_methods import registry
from kd_methods.contract import Batch, Card, DataInfo, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from kd_methods.errors import Changed, DiskError, UserError

SAMPLES, STEPS = 100, 2


class Quit(BaseException):
    """Of a plugin's own."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "exit": lambda: SystemExit(0),
    "pipe": lambda: BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "own": lambda: Quit("enough"),
    "stop iteration": StopIteration,
    "user": lambda: UserError("not in this epoch"),
}

SHORTAGES: dict[str, Callable[[], BaseException]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "allocator": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "allocator of Windows": lambda: RuntimeError(
        "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."
    ),
    "onednn's memory": lambda: RuntimeError("could not create a memory object"),
    "onednn's primitive": lambda: RuntimeError("could not create a primitive"),
    "onednn's execution": lambda: RuntimeError("could not execute a primitive"),
    "c++": lambda: RuntimeError("std::bad_alloc"),
    "python": MemoryError,
    "numpy": lambda: np._core._exceptions._ArrayMemoryError((1 << 30,), np.dtype("float64")),  # type: ignore[attr-defined]
    "system": lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
}


class _Wrong(Method):
    """Raises an error at a moment of its life, once for every process or every time."""

    card = Card(name="test_wrong", version=1, family="logit", title="Wrong")
    needs = Needs(student=("pooled",), teacher=("logits",))

    class Settings(MethodSettings):
        error: str = ""
        moment: str = "losses"

    settings: Settings
    short: Callable[[], BaseException] | None = None
    """What is raised while more than two of these are alive."""

    alive: ClassVar[weakref.WeakSet[_Wrong]] = weakref.WeakSet()

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__(student, teacher, info, settings)
        self.steps = 0
        self.alive.add(self)
        self._at("init")

    def _at(self, moment: str) -> None:
        if moment == self.settings.moment and self.settings.error in ERRORS:
            raise ERRORS[self.settings.error]()

    def train(self, mode: bool = True) -> _Wrong:
        if mode:
            self._at("train")
        return super().train(mode)

    def state_dict(self, *arguments: Any, **named: Any) -> Any:
        self._at("save")
        return super().state_dict(*arguments, **named)

    def load_state_dict(self, *arguments: Any, **named: Any) -> Any:
        self._at("restore")
        return super().load_state_dict(*arguments, **named)

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        self.steps += 1
        if self.steps == 2:
            self._at("losses")
            if self.short and len(self.alive) > 2:
                raise self.short()
        return Losses(task={"task": batch.loss(student.logits)})

    def auxiliary_fields(self) -> tuple[str, ...]:
        return ("last_map",)

    def auxiliary_logits(self, student: Outputs) -> Mapping[str, Tensor]:
        self._at("auxiliary_logits")
        return {}

    def remarks(self) -> tuple[str, ...]:
        self._at("remarks")
        return ()


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._classes, "test_wrong", _Wrong)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return tiny_data(SAMPLES)


# --- whose an error is


def test_one_place_says_whose_an_error_is():
    for error in (
        KeyboardInterrupt(),
        Interrupted("stop"),
        DiskError("full"),
        *(make() for make in SHORTAGES.values()),
    ):
        assert of_cell(error) is None and of_cell(error, building=True) is None, error
    states = {make: of_cell(make()) for make in ERRORS.values()}
    assert all(failure and failure.state == "failed" for failure in states.values())
    for error, building, state in (
        (Diverged("term 'x' is nan"), False, "diverged"),
        (Refused("not for these"), False, "refused"),
        (UserError("not for\nthese"), True, "refused"),
        (UserError("not for\nthese"), False, "failed"),
        (UserError(""), False, "failed"),
        (Unfit("no such network"), True, "failed"),
    ):
        failure = of_cell(error, building)
        assert failure and failure.state == state and "\n" not in failure.message and not failure.trace
    assert of_cell(Changed("other weights than planned"), True) is None
    for error, concerned in ((DiskError("full"), DiskError), (UserError("no such network"), Unfit)):
        with pytest.raises(concerned), whatever_the_method():
            raise error
    failure = of_cell(SystemExit(0))
    assert failure and failure.message == "SystemExit: 0" and "SystemExit" in failure.trace


@pytest.mark.parametrize("moment", ["init", "train", "losses", "auxiliary_logits", "save", "remarks"])
def test_whatever_a_method_raises_is_its_cell_s_failure(
    bench: TrainingBench, alone: Callable[[Any], Result], moment: str
):
    wrong = bench.cells([("test_wrong", {"error": error, "moment": moment}) for error in ERRORS])
    kd, at = bench.cells([("kd", {}), ("at", {})])
    bench.run([kd, *wrong, at])
    for cell, error in zip(wrong, ERRORS, strict=True):
        status = bench.store.run(cell).status
        assert status["state"] == ("refused" if (moment, error) == ("init", "user") else "failed"), status
        assert "\n" not in status["message"]
        assert type(ERRORS[error]()).__name__ in status["message"] or error == "user"
    assert all(Result(bench.store, cell) == alone(cell) for cell in (kd, at))


def test_no_more_batches_are_made_for_cells_that_have_all_failed(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch):
    made = []

    def batches(*args: Any) -> Iterator[TaskBatch]:
        for batch in original(*args):
            made.append(len(batch))
            yield batch

    original = ImageData.batches
    monkeypatch.setattr(ImageData, "batches", batches)
    wrong = bench.cells([("test_wrong", {"error": error, "moment": "train"}) for error in ("own", "user")])
    bench.run(wrong)
    assert bench.states(wrong) == ["failed", "failed"] and len(made) == 1 < STEPS


def test_a_method_that_cannot_be_restored_fails_and_keeps_its_checkpoint(bench: TrainingBench):
    (cell,) = bench.cells([("test_wrong", {"error": "own", "moment": "restore"})])
    with pytest.raises(Interrupted):
        bench.run([cell], stopping=lambda: sum(bench.steps().values()) >= 2)
    bench.run([cell])
    assert bench.states([cell]) == ["failed"] and (bench.store.run(cell) / "checkpoint.pt").is_file()


def test_the_user_s_stop_is_no_failure(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch):
    """The second Ctrl-C ends the process wherever it is, also within a method."""
    monkeypatch.setitem(ERRORS, "stop", KeyboardInterrupt)
    cells = bench.cells([("kd", {}), ("test_wrong", {"error": "stop"})])
    with pytest.raises(KeyboardInterrupt):
        bench.run(cells)
    assert bench.states(cells) == ["running", "running"]


@pytest.mark.parametrize("event", ["step", "epoch", "done", "failed"])
def test_a_report_that_fails_marks_no_cell(
    bench: TrainingBench, alone: Callable[[Any], Result], monkeypatch: pytest.MonkeyPatch, event: str
):
    """It ends the run, if its errors get out at all, and nothing is lost."""
    kd, wrong, at = bench.cells([("kd", {}), ("test_wrong", {"error": "own", "moment": "train"}), ("at", {})])

    def report(happened: CellEvent) -> None:
        if kind(happened) == event:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with monkeypatch.context() as patch:
        patch.setattr(bench, "report", report)
        with pytest.raises(BrokenPipeError):
            bench.run([kd, wrong, at])
    assert "failed" not in bench.states([kd, at])
    bench.run([kd, wrong, at])
    assert bench.store.run(wrong).state == "failed"
    assert all(Result(bench.store, cell) == alone(cell) for cell in (kd, at))


class _Closed(io.StringIO):
    """A terminal or a file that nobody reads any more, or that has no room."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("terminal", [True, False], ids=["bars", "lines"])
def test_training_goes_on_without_its_display(
    bench: TrainingBench, alone: Callable[[Any], Result], monkeypatch: pytest.MonkeyPatch, terminal: bool
):
    stream = _Closed(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "EVERY", -1.0)
    console = functools.partial(progress._Console, file=stream, force_terminal=terminal)
    monkeypatch.setattr(progress, "_Console", lambda **_: console())
    cells = bench.cells([("kd", {}), ("test_wrong", {"error": "own", "moment": "init"})])
    with Reporter(len(cells), PROTOCOL, len(bench.data.train.labels), "top1") as report:
        monkeypatch.setattr(bench, "report", report)
        bench.run(cells)
        report(Said("a line"))
        report(LeftOut("another"))
    monkeypatch.undo()
    assert Result(bench.store, cells[0]) == alone(cells[0])


def test_a_display_with_a_mistake_of_its_own_is_left_for_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    class Bars:
        def start(self) -> None:
            raise KeyError("some mistake")

    report = Reporter(1, PROTOCOL, 64, "top1")
    report.live = Bars()  # type: ignore[assignment]
    with report:
        report(Said("a line"))
    assert "a line" in capsys.readouterr().err


# --- memory


@pytest.mark.parametrize("kind", SHORTAGES)
def test_a_lack_of_memory_is_known_whoever_says_it(kind: str):
    assert out_of_memory(SHORTAGES[kind]())


def test_what_is_raised_over_a_lack_of_memory_is_one(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch):
    """A network that cannot be looked at for want of memory is no reason to refuse a pair for ever."""

    def build(*_: Any) -> Any:
        try:
            raise SHORTAGES["allocator"]()
        except RuntimeError as error:
            raise UserError(f"the network does not run on these images ({error})") from None

    (cell,) = bench.cells([("kd", {})])
    context = bench.context()
    usual = type(bench.data).build.__get__(bench.data)
    monkeypatch.setattr(
        bench.data, "build", lambda name, **how: build() if name == cell.student else usual(name, **how)
    )
    local.run([cell], context)
    status = bench.store.run(cell).status
    assert status["state"] == "failed" and status["message"].startswith("out of memory, alone in its group")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_another_error_is_no_lack_of_memory(error: BaseException):
    assert not out_of_memory(error)


@pytest.mark.parametrize("kind", ["allocator", "onednn's memory", "python"])
def test_a_group_splits_for_whatever_says_that_memory_is_short(
    bench: TrainingBench, alone: Callable[[Any], Result], monkeypatch: pytest.MonkeyPatch, kind: str
):
    cells = bench.cells([("test_wrong", {"moment": name}) for name in "abcd"])
    with monkeypatch.context() as patch:
        patch.setattr(_Wrong, "short", staticmethod(SHORTAGES[kind]))
        bench.run(cells)
    assert all(Result(bench.store, cell) == alone(cell) for cell in cells)


def test_what_has_ended_is_not_tried_again_in_the_halves(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch):
    ended = bench.cells(
        [("test_wrong", {"error": "own", "moment": "train"}), ("test_wrong", {"error": "user", "moment": "init"})]
    )
    others = bench.cells([("test_wrong", {"moment": name}) for name in "abc"])
    with monkeypatch.context() as patch:
        patch.setattr(_Wrong, "short", staticmethod(SHORTAGES["allocator"]))
        bench.run([*ended, *others])
    assert bench.states([*ended, *others]) == ["failed", "refused", "done", "done", "done"]
    assert bench.events.count((ended[0].label, "failed")) == 1
    assert len([line for line in bench.said if "n/a: not in this epoch" in line]) == 1, bench.said


def test_a_protocol_that_no_network_can_follow_is_no_refusal(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch):
    """Where it is the network that cannot be had, and where it is the optimiser."""
    usual = bench.protocol
    bench.protocol = usual.model_copy(update={"optimizer": Optimizer(lr=0.1, name="absent")})
    absent = bench.cells([("student", {})])
    bench.run(absent)
    bench.protocol = usual

    def build(name: str, trained: bool = False) -> Any:
        raise UserError(f"network '{name}' has no stochastic depth")

    monkeypatch.setattr(bench.data, "build", build)
    without = bench.cells([("student", {})])
    bench.run(without)
    assert bench.states([*absent, *without]) == ["failed", "failed"]
    assert not any("n/a" in line for line in bench.said)


def test_what_an_import_brings_before_its_turn_is_not_computed(bench: TrainingBench, tmp_path: Path):
    """Without its network, as archives have it."""
    (cell,) = bench.cells([("kd", {})])
    bench.run([cell])
    (bench.store.run(cell) / "student.pt").unlink()
    before = bench.steps()
    bench.run([cell])
    assert bench.store.run(cell).state == "done" and bench.steps() == before


def test_alone_and_still_too_large_says_what_was_said(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ERRORS, "memory", SHORTAGES["allocator"])
    cells = bench.cells([("kd", {}), ("test_wrong", {"error": "memory"})])
    bench.run(cells)
    assert bench.states(cells) == ["done", "failed"]
    message = bench.store.run(cells[1]).status["message"]
    assert message.startswith("out of memory, alone in its group: ") and "DefaultCPUAllocator" in message


def test_a_checkpoint_that_does_not_fit_into_memory_is_not_damaged(
    bench: TrainingBench, alone: Callable[[Any], Result], monkeypatch: pytest.MonkeyPatch
):
    cells = bench.cells([("kd", {}), ("at", {})])
    with pytest.raises(Interrupted):
        bench.run(cells, stopping=lambda: sum(bench.steps().values()) >= 4)
    load, calls = torch.load, 0

    def short(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += "checkpoint" in str(arguments[0])
        if calls == 2:
            calls += 1
            raise SHORTAGES["allocator"]()
        return load(*arguments, **named)

    monkeypatch.setattr(torch, "load", short)
    bench.run(cells)
    assert not bench.said and sum(bench.steps().values()) == 2 * EPOCHS * STEPS
    monkeypatch.undo()
    assert all(Result(bench.store, cell) == alone(cell) for cell in cells)


def test_a_group_splits_under_a_limit_of_the_operating_system(tmp_path: Path):
    """The allocator's own error, in a process that may have no more than so much memory."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests")])}
    run = subprocess.run(
        [sys.executable, "-P", __file__, str(tmp_path)], env=environment, cwd=REPO, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    assert said == {"states": ["done"] * 4, "sizes": [4, 2, 2]}


MIB = 2**20


class _Large(Method):
    """Holds 200 MiB."""

    card = Card(name="test_large", version=1, family="logit", title="Large")
    needs = Needs(teacher=("logits",))
    Settings: Any = type("Settings", (MethodSettings,), {"__annotations__": {"which": int}, "which": 0})

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__(student, teacher, info, settings)
        self.held = (torch.empty(200 * MIB, dtype=torch.uint8),)

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        return Losses(task={"task": batch.loss(student.logits)})


def main() -> None:
    """Train a group of four in which two fit."""
    importlib.import_module("torch._dynamo")  # comes with an optimiser, and is no memory of the group's
    torch.set_num_threads(1)
    registry._classes["test_large"] = _Large
    bench, sizes = TrainingBench(Path(sys.argv[1]), tiny_data()), list[int]()
    cells = bench.cells([("test_large", {"which": which}) for which in range(4)])
    shortage = local._shortage

    def counted(group: Any, context: Any) -> str:
        sizes.append(len(group))
        return shortage(group, context)

    local._shortage = counted
    (used,) = (
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmSize")
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + 700 * MIB, resource.RLIM_INFINITY))
    bench.run(cells)
    print(json.dumps({"states": bench.states(cells), "sizes": sizes}))


if __name__ == "__main__":
    main()
