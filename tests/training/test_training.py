"""Training: a cell's bits depend on its identity alone, not on company, kills, stops, memory or a full disk.

Run as a script, this file is a process that trains cells of a store and may be killed (see :func:`main`).
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import functools
import gc
import io
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import kd_methods
from benchmarks.common import files
from benchmarks.common.seeding import Stream, derive
from benchmarks.common.weights import to_bytes, weights_digest
from benchmarks.config.protocol import Protocol, load_protocol, steps_per_epoch
from benchmarks.config.recipe import Optimizer
from benchmarks.driver.executors import local
from benchmarks.networks import NetworkView
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.store.cells import make_cell
from benchmarks.store.runs import Store
from benchmarks.tasks import digits
from benchmarks.tasks.images import ImageData, Split
from benchmarks.training import optimizers
from benchmarks.training.failures import Interrupted
from benchmarks.training.loop import CHECK_EVERY, SharedTeacher, protocol_progress
from benchmarks.training.student_run import StudentRun
from kd_methods import registry
from kd_methods.contract import Batch, Card, DataInfo, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from kd_methods.errors import DiskError, UserError

REPO = Path(__file__).parents[2]
CPU = torch.device("cpu")
TEACHER, STUDENT = "wrn_16_1", "resnet8"
EPOCHS, STEPS, SAMPLES = 2, 4, 200  # the last batch of an epoch has 8 samples
NEVER = 1e9

Case = tuple[str, dict[str, Any]]
FEW: list[Case] = [("student", {}), ("fitnet", {}), ("block_kd", {"sample_stones": 1})]
"""Without a teacher; with parameters of its own; with random numbers in its losses."""
FOR_TRANSFORMERS = ("vitkd",)
ALL: list[Case] = [
    *(
        (name, {})
        for name in kd_methods.available()
        if kd_methods.card(name).modality in ("images", "any") and name not in FOR_TRANSFORMERS
    ),
    ("block_kd", {"sample_stones": 2}),
    ("block_kd", {"teacher_bn": "batch"}),
    ("crd+kd", {}),
]


def tiny_data(samples: int = SAMPLES) -> ImageData:
    train, test = digits.load(Path(), False)
    pieces = (Split(part.images[:count], part.labels[:count]) for part, count in ((train, samples), (test, 100)))
    return ImageData(*pieces, 10, PROTOCOL, CPU)


PROTOCOL = load_protocol("digits-demo").model_copy(
    update={
        "name": "test",
        "epochs": EPOCHS,
        "recipe_epochs": 30 * EPOCHS,  # a first phase of 30 epochs takes one
        "milestones": (30,),
        "second_view": "randaugment",
    }
)


@functools.cache
def teacher_weights(data: ImageData) -> dict[str, Tensor]:
    """A teacher whose running statistics have seen data; computed once, since rounding depends on the threads."""
    with torch.random.fork_rng():
        torch.manual_seed(17)
        network = data.build(TEACHER).train()
        with torch.no_grad():
            for batch in data.batches(17, 1):
                network(batch.student().inputs, fields=())
    return network.module.state_dict()


class Bench:
    """A folder with a store and a teacher's file, and what trains cells in it."""

    def __init__(self, folder: Path, data: ImageData) -> None:
        self.folder, self.data, self.store = folder, data, Store(folder / "store")
        self.events: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.file = folder / "teacher.pt"
        if not self.file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            self.file.write_bytes(to_bytes(teacher_weights(data)))
        digest = weights_digest(torch.load(self.file, weights_only=True))
        self.ref = TeacherRef(TEACHER, PROTOCOL.mean, (0.5, 0.4, 0.3), weights=digest)

    def cells(self, cases: Sequence[Case], seed: int = 0) -> list[Cell]:
        made = []
        for name, values in cases:
            teacher = self.ref if registry.get(name).needs_teacher else None
            made.append(make_cell(PROTOCOL, "data", name, STUDENT, seed, teacher, values, {}))
        return made

    def report(self, student_run: StudentRun, event: str) -> None:
        self.events.append((student_run.cell.label, event))

    def context(self, stopping: Callable[[], bool] = lambda: False, save_seconds: float = NEVER) -> local.Context:
        return local.Context(
            self.store, PROTOCOL, self.data, CPU, lambda ref: self.file, self.report, self.said.append,
            stopping, save_seconds,
        )  # fmt: skip

    def run(self, cells: Sequence[Cell], **options: Any) -> None:
        local.run(cells, self.context(**options))

    def states(self, cells: Sequence[Cell]) -> list[str]:
        return [self.store.run(cell).state for cell in cells]

    def steps(self) -> Counter[str]:
        return Counter(label for label, event in self.events if event == "step")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return tiny_data()


class Result:
    """All of a finished cell that must not depend on how it came about."""

    def __init__(self, store: Store, cell: Cell) -> None:
        run = store.run(cell)
        assert run.state == "done", (cell.label, run.status)
        self.weights = torch.load(run / "student.pt", weights_only=True)
        self.checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
        self.checkpoint.pop("seconds")
        self.records = [{k: v for k, v in record.items() if k != "seconds"} for record in run.metrics]
        for record in self.checkpoint["records"]:
            record.pop("seconds")

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Result)
        return all(identical(getattr(self, name), getattr(other, name)) for name in vars(self))


def identical(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(identical(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(identical, left, right))
    return type(left) is type(right) and left == right


def differing(bench: Bench, cells: Sequence[Cell], alone: Callable[[Cell], Result]) -> list[str]:
    return [cell.label for cell in cells if Result(bench.store, cell) != alone(cell)]


# --- company


def test_a_cell_alone_is_the_cell_in_any_group(bench: Bench, alone: Callable[[Cell], Result]):
    cells = bench.cells(ALL)
    taught = [cell for cell in cells if cell.teacher]
    assert len({cell.group() for cell in taught}) == 1
    torch.manual_seed(999)
    bench.run(cells)
    assert differing(bench, cells, alone) == []


def test_also_with_two_threads(tmp_path: Path, data: ImageData):
    torch.set_num_threads(2)
    group = Bench(tmp_path / "group", data)
    cells = group.cells(FEW[1:])
    group.run(cells)
    for i, cell in enumerate(cells):
        single = Bench(tmp_path / str(i), data)
        single.run([cell])
        assert Result(single.store, cell) == Result(group.store, cell), cell.label


def test_the_comparison_notices_a_difference(bench: Bench, alone: Callable[[Cell], Result]):
    """Another seed, other settings and another order of draws give other bits."""
    (cell,) = bench.cells([("block_kd", {"sample_stones": 1})])
    (seed,) = bench.cells([("block_kd", {"sample_stones": 1})], seed=1)
    assert not identical(alone(cell).weights, alone(seed).weights)
    kd, other = bench.cells([("kd", {}), ("kd", {"temperature": 2.0})])
    assert not identical(alone(kd).weights, alone(other).weights)


def test_students_of_one_seed_start_alike_and_see_the_same_batches(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    cells = bench.cells(FEW)
    seen: dict[str, list[Tensor]] = {}
    step = StudentRun.step

    def watch(self: StudentRun, batch: Batch, *rest: Any) -> None:
        if self.position == (1, 0):
            starts.append([p.detach().clone() for p in self.student.module.parameters()])
        seen.setdefault(self.cell.label, []).append(batch.inputs.clone())
        step(self, batch, *rest)

    starts: list[list[Tensor]] = []
    monkeypatch.setattr(StudentRun, "step", watch)
    bench.run(cells)
    assert len(starts) == len(FEW)
    assert all(identical(starts[0], start) for start in starts)
    first, *others = seen.values()
    assert len(first) == EPOCHS * STEPS and all(identical(first, other) for other in others)


def test_the_teacher_stays_as_it_was(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    built: list[NetworkView] = []
    teacher = local.Context.teacher

    def watch(self: local.Context, ref: TeacherRef) -> NetworkView:
        built.append(teacher(self, ref))
        return built[-1]

    monkeypatch.setattr(local.Context, "teacher", watch)
    cells = [cell for cell in bench.cells(ALL) if cell.teacher]
    bench.run(cells)
    (network,) = built
    wanted = torch.load(bench.file, weights_only=True)
    assert identical(dict(network.module.state_dict()), dict(wanted))
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert not any(module.training for module in network.modules())


# --- kills, stops, and what is found afterwards


@pytest.mark.parametrize("save_seconds", [0.0, 600.0])
def test_killed_anywhere_and_resumed(bench: Bench, alone: Callable[[Cell], Result], save_seconds: float):
    """SIGKILL at random moments, also in the middle of writing; a run of the same command goes on each time."""
    cells = bench.cells(FEW)
    finished = process(bench.folder, FEW, "--save-seconds", str(save_seconds), "--kills", "8")
    out, _ = finished.communicate(timeout=240)
    assert finished.returncode == 0, out
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert sum(line["event"] == "killed" for line in lines) >= 3, "the kills came too late to matter"
    assert differing(bench, cells, alone) == []
    for cell in cells:
        left = [path.name for path in bench.store.run(cell).path.glob(".*") if path.name != ".lock"]
        assert not [name for name in left if ".pt." in name], left
    if save_seconds == 0.0:  # with a checkpoint after each step hardly more is computed twice than a step per kill
        assert sum(line["event"] == "step" for line in lines) <= len(FEW) * EPOCHS * STEPS * 2


@pytest.mark.parametrize("after", [1, 3, STEPS * 3 - 1, STEPS * 3, STEPS * 3 + 4])
def test_stopped_and_resumed(bench: Bench, alone: Callable[[Cell], Result], after: int):
    cells = bench.cells(FEW)
    with pytest.raises(Interrupted):
        bench.run(cells, stopping=lambda: sum(bench.steps().values()) >= after)
    assert "interrupted" in bench.states(cells) and "running" not in bench.states(cells)
    done = bench.steps()
    bench.run(cells)
    assert differing(bench, cells, alone) == []
    total = bench.steps()
    assert all(total[label] == EPOCHS * STEPS for label in total), "no step is computed twice after a stop"
    assert sum(done.values()) >= after


def test_a_change_of_what_bits_depend_on_is_said_and_stays_with_the_run(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    (cell,) = bench.cells([("kd", {})])
    with pytest.raises(Interrupted):
        bench.run([cell], stopping=lambda: sum(bench.steps().values()) > STEPS)
    assert bench.said == []
    usual = local.environment.arithmetic
    monkeypatch.setattr(local.environment, "arithmetic", lambda device: {**usual(device), "threads": 99})
    bench.run([cell])
    change = f"computed with threads 99 instead of {torch.get_num_threads()} from epoch 2 on"
    assert bench.said == [f"{cell.label}  {change}, so it ends in other bits than a run without this change"]
    assert bench.store.run(cell).status["remarks"] == [change]


def test_members_at_different_positions_end_in_the_same_bits(
    tmp_path: Path, data: ImageData, alone: Callable[[Cell], Result]
):
    """As after a kill between two of a group's checkpoints, or when methods were added to a table later."""
    cases: list[Case] = [("kd", {}), ("fitnet", {}), ("block_kd", {"sample_stones": 1}), ("at", {}), ("sp", {})]
    stops = [1, 3, STEPS, STEPS + 2, 0]  # steps after which each student run was last saved; 0: not started
    final = Bench(tmp_path / "final", data)
    for i, (case, stop) in enumerate(zip(cases, stops, strict=True)):
        if stop:
            single = Bench(tmp_path / str(i), data)
            (cell,) = single.cells([case])
            with pytest.raises(Interrupted):
                single.run([cell], stopping=lambda b=single, s=stop: sum(b.steps().values()) >= s)
            shutil.copytree(single.store.run(cell).path, final.store.run(cell).path)
    cells = final.cells(cases)
    final.run(cells)
    assert differing(final, cells, alone) == []
    assert [final.steps()[cell.label] for cell in cells] == [EPOCHS * STEPS - stop for stop in stops]


def test_killed_after_the_last_checkpoint_and_before_the_end(bench: Bench, alone: Callable[[Cell], Result]):
    (cell,) = bench.cells([("kd", {})])
    bench.run([cell])
    run = bench.store.run(cell)
    (run / "student.pt").unlink()
    (run / "metrics.json").unlink()
    run.set_status("running", epoch=EPOCHS, epochs=EPOCHS)
    bench.events.clear()
    bench.run([cell])
    assert not bench.steps() and Result(bench.store, cell) == alone(cell)


def stopped(bench: Bench, name: str = "kd", after: int = 2) -> tuple[Cell, Path]:
    """A cell that was stopped, and its checkpoint."""
    (cell,) = bench.cells([(name, {})])
    with pytest.raises(Interrupted):
        bench.run([cell], stopping=lambda: sum(bench.steps().values()) >= after)
    return cell, bench.store.run(cell) / "checkpoint.pt"


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def spoil(what: str, content: bytes) -> bytes:
    """A checkpoint that cannot be used."""
    if what == "half":
        return content[: len(content) // 2]
    if what == "bit":  # in the weights, where it makes another number and no error
        return flipped(content, len(content) // 3)
    state = torch.load(io.BytesIO(content), weights_only=True)
    if what == "list":
        return to_bytes([state])
    if what == "another cell's":
        return to_bytes({**state, "cell": "0" * 64})
    if what == "other epochs":
        return to_bytes({**state, "position": [2, 0]})
    return to_bytes({**state, what: "not this"})


PARTS = {"student", "method", "optimizer", "stream", "scaler", "position", "records", "sums", "counted", "seconds"}
"""Of a checkpoint; without fp16 nothing is in the scaler's, and nothing is read of it."""


@pytest.mark.parametrize("what", ["half", "bit", "list", "another cell's", "other epochs", *sorted(PARTS - {"scaler"})])
def test_a_checkpoint_that_cannot_be_used_is_kept_aside_and_its_cell_starts_again(
    bench: Bench, alone: Callable[[Cell], Result], what: str
):
    cell, path = stopped(bench)
    assert set(torch.load(path, weights_only=True)) == {*PARTS, "cell"}
    content = spoil(what, path.read_bytes())
    path.write_bytes(content)
    (path.parent / "checkpoint.pt.unreadable-1").write_bytes(b"an earlier one")
    bench.run([cell])
    assert Result(bench.store, cell) == alone(cell)
    (line,) = (line for line in bench.said if "starts again" in line)
    assert str(path) in line and "checkpoint.pt.unreadable-2" in line and "\n" not in line
    assert (path.parent / "checkpoint.pt.unreadable-2").read_bytes() == content
    assert (path.parent / "checkpoint.pt.unreadable-1").read_bytes() == b"an earlier one"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_checkpoint_that_cannot_be_read_now_stays_and_the_run_stops(
    bench: Bench, alone: Callable[[Cell], Result], monkeypatch: pytest.MonkeyPatch, code: int
):
    cell, path = stopped(bench)
    content, read = path.read_bytes(), Path.read_bytes

    def failing(file: Path) -> bytes:
        if file == path:
            raise OSError(code, os.strerror(code))
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(DiskError, match=f"cannot read .*checkpoint.pt: {os.strerror(code)}"):
        bench.run([cell])
    monkeypatch.undo()
    assert path.read_bytes() == content and not list(path.parent.glob("*unreadable*"))
    bench.events.clear()
    bench.run([cell])
    assert Result(bench.store, cell) == alone(cell)
    assert sum(bench.steps().values()) == EPOCHS * STEPS - 2, "it went on"


# --- trouble


class _Trouble(Method):
    """Distils until a step, then does something wrong."""

    card = Card(name="test_trouble", version=1, family="logit", title="Trouble")
    needs = Needs(student=("pooled",), teacher=("logits", "stages"))

    class Settings(MethodSettings):
        kind: str = "nan"
        step: int = 5

    settings: Settings

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__(student, teacher, info, settings)
        self.steps = 0
        if self.settings.kind == "build":
            raise ValueError("cannot be built")
        if self.settings.kind == "refuse":
            raise UserError("not made for this pair")

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        self.steps += 1
        match = (student.logits - teacher.logits).square().mean()
        if self.steps == self.settings.step:
            if self.settings.kind == "nan":
                match = match * float("nan")
            elif self.settings.kind == "raise":
                raise ZeroDivisionError("of the method's own")
            elif self.settings.kind == "draw":
                torch.manual_seed(0)
                torch.rand(1000)
            elif self.settings.kind == "inplace":
                teacher.stages[0].zero_()
        return Losses(task={"task": batch.loss(student.logits)}, distill={"bad_match": match})


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(registry._classes, "test_trouble", _Trouble)
    yield


@pytest.mark.parametrize(
    ("kind", "state", "text"),
    [
        ("nan", "diverged", "bad_match"),
        ("raise", "failed", "ZeroDivisionError"),
        ("build", "failed", "cannot be built"),
        ("refuse", "refused", "not made for this pair"),
        ("inplace", "failed", "changed what its group shares: the teacher's output 'block1.1'"),
        ("draw", "done", ""),
    ],
)
@pytest.mark.usefixtures("trouble")
def test_a_bad_cell_is_alone_in_its_trouble(
    bench: Bench, alone: Callable[[Cell], Result], kind: str, state: str, text: str
):
    companions: list[Case] = [("kd", {}), ("fitnet", {}), ("block_kd", {"sample_stones": 1})]
    cells = bench.cells([companions[0], ("test_trouble", {"kind": kind}), *companions[1:]])
    bench.run(cells)
    status = bench.store.run(cells[1]).status
    assert status["state"] == state
    if state != "done":
        assert text in status["message"] and "\n" not in status["message"]
        assert not (bench.store.run(cells[1]) / "student.pt").exists()
    if state == "failed" and kind != "inplace":
        assert "Traceback" in status["trace"] and text in status["trace"]
    good = [cells[0], *cells[2:]]
    assert bench.states(good) == ["done"] * 3
    assert differing(bench, good, alone) == []
    # What diverged or was refused is a result, what failed is tried again.
    bench.events.clear()
    bench.run(cells)
    assert bool(bench.steps()) == (state == "failed" and kind != "build")


@pytest.mark.usefixtures("trouble")
def test_a_divergence_is_noticed_at_the_next_look(data: ImageData, tmp_path: Path):
    """Within CHECK_EVERY steps or at the end of the epoch, before anything is recorded of that epoch."""
    bench = Bench(tmp_path, data)
    (cell,) = bench.cells([("test_trouble", {"kind": "nan", "step": 6})])
    bench.run([cell])
    run = bench.store.run(cell)
    assert run.state == "diverged" and "epoch 2" in run.status["message"]
    assert [record["epoch"] for record in run.metrics] == [1]
    assert bench.steps()[cell.label] <= 6 + CHECK_EVERY


def test_out_of_memory_splits_the_group(bench: Bench, alone: Callable[[Cell], Result], monkeypatch: pytest.MonkeyPatch):
    cells = bench.cells([("kd", {}), ("fitnet", {}), ("at", {}), ("block_kd", {"sample_stones": 1})])
    step, init = StudentRun.step, StudentRun.__init__
    alive: list[weakref.ref[StudentRun]] = []
    sizes: list[int] = []
    calls = 0

    def short_of_memory(self: StudentRun, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4 * STEPS + 6:  # in the second epoch, in the middle of a step of the group
            raise torch.OutOfMemoryError("out of memory")
        step(self, *arguments)

    def counted(self: StudentRun, *arguments: Any) -> None:
        gc.collect()
        sizes.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(self))
        init(self, *arguments)

    monkeypatch.setattr(StudentRun, "step", short_of_memory)
    monkeypatch.setattr(StudentRun, "__init__", counted)
    bench.run(cells)
    assert sizes == [0, 1, 2, 3, 0, 1, 0, 1], "the group that did not fit is still held in memory"
    monkeypatch.undo()  # what is trained alone to compare with is not counted
    assert differing(bench, cells, alone) == []


def test_out_of_memory_alone_fails_that_cell(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    cells = bench.cells([("kd", {}), ("fitnet", {})])
    step = StudentRun.step

    def short_of_memory(self: StudentRun, *arguments: Any) -> None:
        if self.cell.method == "fitnet":
            raise torch.OutOfMemoryError("out of memory")
        step(self, *arguments)

    monkeypatch.setattr(StudentRun, "step", short_of_memory)
    bench.run(cells)
    assert bench.states(cells) == ["done", "failed"]
    assert "out of memory" in bench.store.run(cells[1]).status["message"]


@pytest.mark.parametrize("too_large", ["", ".checkpoint.pt."], ids=["every file", "checkpoints"])
def test_a_full_disk_ends_the_run_and_loses_nothing(
    bench: Bench, alone: Callable[[Cell], Result], monkeypatch: pytest.MonkeyPatch, too_large: str
):
    """Small files may still find room when a checkpoint does not; the cell is not to blame in either case."""
    cells = bench.cells(FEW)
    fsync, full = os.fsync, False

    def no_space(handle: int) -> None:
        if full and too_large in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    report = bench.report
    contents: dict[str, bytes] = {}

    def watch(student_run: StudentRun, event: str) -> None:
        nonlocal full
        report(student_run, event)
        if bench.steps()[cells[1].label] == STEPS + 2 and not full:
            full = True
            for cell in cells:
                path = bench.store.run(cell) / "checkpoint.pt"
                contents[cell.label] = path.read_bytes() if path.is_file() else b""

    monkeypatch.setattr(bench, "report", watch)
    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(UserError, match="No space left"):
        bench.run(cells)
    assert not {"failed", "diverged"} & set(bench.states(cells))
    assert contents[cells[1].label]
    for cell in cells:
        path = bench.store.run(cell) / "checkpoint.pt"
        assert (path.read_bytes() if path.is_file() else b"") == contents[cell.label]
        assert not list(path.parent.glob(".*.*.*")), "half-written files are left"
    full = False
    monkeypatch.undo()
    bench.run(cells)
    assert differing(bench, cells, alone) == []


# --- once


def test_a_second_run_computes_nothing(bench: Bench):
    cells = bench.cells([("student", {}), ("kd", {})])
    bench.run([*cells, *cells])
    assert all(count == EPOCHS * STEPS for count in bench.steps().values())
    content = {path: path.stat().st_mtime_ns for path in bench.store.root.rglob("*") if path.is_file()}
    bench.events.clear()
    bench.run(cells)
    assert bench.events == []
    assert content == {path: path.stat().st_mtime_ns for path in bench.store.root.rglob("*") if path.is_file()}


def test_two_processes_share_a_store(bench: Bench, alone: Callable[[Cell], Result]):
    """Each cell is computed by one of them; when the one that holds it is killed, the other takes it over."""
    cells = bench.cells(FEW)
    both = [process(bench.folder, FEW, "--save-seconds", "0") for _ in range(2)]
    outputs = [one.communicate(timeout=240)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], outputs
    lines = [json.loads(line) for out in outputs for line in out.splitlines() if line.startswith("{")]
    steps = Counter(line["cell"] for line in lines if line["event"] == "step")
    assert steps == {cell.label: EPOCHS * STEPS for cell in cells}
    assert differing(bench, cells, alone) == []


# --- first phases, second views, optimisers


PHASED: list[Case] = [("ab", {"epochs": 60.0}), ("ft", {}), ("mlld", {}), ("kd", {})]
"""With first phases of two epochs and of one, with two views, and without either."""


@pytest.mark.parametrize("after", [1, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS + 3, 4 * STEPS, 4 * STEPS + 2])
def test_stopped_in_a_first_phase_and_resumed(bench: Bench, alone: Callable[[Cell], Result], after: int):
    """Inside a phase, at its end and just behind it, for student runs of one group that stand at different epochs."""
    cells = bench.cells(PHASED)
    with pytest.raises(Interrupted):
        bench.run(cells, stopping=lambda: sum(bench.steps().values()) >= after)
    bench.run(cells)
    expected = {cells[0].label: 4, cells[1].label: 3, cells[2].label: 2, cells[3].label: 2}
    assert bench.steps() == {label: epochs * STEPS for label, epochs in expected.items()}
    assert differing(bench, cells, alone) == []


def test_killed_in_a_first_phase(bench: Bench, alone: Callable[[Cell], Result]):
    """Student runs fall back to checkpoints of their own: one saved in the phase, one after it, one never."""
    cells = bench.cells(PHASED[:3])
    teacher = bench.context().teacher(bench.ref)
    shared = SharedTeacher(teacher, (PROTOCOL.mean, (0.5, 0.4, 0.3)), PROTOCOL)
    for cell, steps in zip(cells, (3, STEPS + 2, 0), strict=True):
        run = bench.store.create(cell)
        student_run = StudentRun(cell, PROTOCOL, bench.data, teacher, run)
        for done in range(steps):
            epoch, step = student_run.position
            if step == 0 or done == 0:
                student_run.start_epoch(epoch)
            batch = next(iter(bench.data.batches(0, epoch, step)))
            inputs = batch.student(student_run.needs.views)
            student_run.step(
                inputs, shared.outputs(batch, [student_run]), (epoch, step), protocol_progress(PROTOCOL, epoch)
            )
            if step + 1 == STEPS:
                student_run.end_epoch(epoch)
        if steps:
            student_run.save()
    bench.run(cells)
    assert differing(bench, cells, alone) == []


def test_a_first_phase_comes_before_the_epochs_that_count(bench: Bench):
    cells = bench.cells([("student", {}), ("ft", {}), ("ab", {"epochs": 60.0})])
    bench.run(cells)
    assert [bench.steps()[cell.label] for cell in cells] == [EPOCHS * STEPS, (1 + EPOCHS) * STEPS, (2 + EPOCHS) * STEPS]
    records = bench.store.run(cells[2]).metrics
    assert [(r["epoch"], r["phase"]) for r in records] == [(-1, "boundaries"), (0, "boundaries"), (1, ""), (2, "")]
    assert [set(r["losses"]) for r in records] == [{"boundaries"}] * 2 + [{"task"}] * 2
    assert [bool(r["metrics"]) for r in records] == [False, False, True, True]
    factor = bench.store.run(cells[1]).metrics
    assert factor[0]["lr"] == 0.01 and factor[1]["lr"] == PROTOCOL.optimizer.lr
    assert bench.store.run(cells[1]).status["best"]["top1"] == max(r["metrics"]["top1"] for r in factor[1:])


def test_a_phase_moves_only_what_its_losses_reach(bench: Bench, data: ImageData):
    """In FT's first phase the paraphraser alone, not even the student's running statistics; after it all but that."""
    context = bench.context()
    student_run = StudentRun(
        bench.cells([("ft", {})])[0], PROTOCOL, data, context.teacher(bench.ref), bench.store.run("x" * 64)
    )
    shared = SharedTeacher(context.teacher(bench.ref), (PROTOCOL.mean, PROTOCOL.std), PROTOCOL)

    def step(epoch: int) -> set[str]:
        before = {key: value.clone() for key, value in state(student_run).items()}
        student_run.position = (epoch, 0)
        student_run.start_epoch(epoch)
        batch = next(iter(data.batches(0, epoch)))
        student_run.step(batch.student(), shared.outputs(batch, [student_run]), (epoch, 0), Progress(1, 2))
        return {key.split(".")[1] for key, value in state(student_run).items() if not torch.equal(value, before[key])}

    assert student_run.first_epoch == 0 and step(0) == {"paraphraser"}
    moved = step(1)
    assert "paraphraser" not in moved and {"translator", "module"} <= moved


def state(student_run: StudentRun) -> dict[str, Tensor]:
    parts = {"student": student_run.student, "method": student_run.method}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def test_the_optimiser_starts_anew_after_a_phase(bench: Bench, data: ImageData):
    teacher = bench.context().teacher(bench.ref)
    student_run = StudentRun(bench.cells([("fsp", {})])[0], PROTOCOL, data, teacher, bench.store.run("x" * 64))
    parameter = next(student_run.student.parameters())
    momentum: Any = student_run.optimizer.state[parameter]  # type: ignore[attr-defined]
    for position, kept in (((0, 0), False), ((0, 2), True), ((1, 0), False), ((1, 3), True), ((2, 0), True)):
        momentum["momentum_buffer"] = torch.ones_like(parameter)
        student_run.position = position
        student_run.start_epoch(position[0])
        assert bool(momentum["momentum_buffer"].any()) == kept, position


def test_stored_logits_are_those_of_one_other_augmentation(
    tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
):
    """Computed once, by image; features stay those of the batch; a stopped run goes on to the same bits."""

    def bench_of(name: str, **values: Any) -> Bench:
        changed = load_protocol("digits-demo").model_copy(update={**usual, "crop_padding": 2, **values})
        monkeypatch.setitem(globals(), "PROTOCOL", changed)
        return Bench(tmp_path / name, tiny_data())

    usual = {name: getattr(PROTOCOL, name) for name in ("name", "epochs", "recipe_epochs", "milestones")}
    online, cases = bench_of("online"), [("kd", {}), ("fitnet", {})]
    before = online.cells(cases)
    online.run(before)
    stored, again = bench_of("stored", stored_logits=True), bench_of("again", stored_logits=True)
    cells = stored.cells(cases)
    stored.run(cells)
    with pytest.raises(Interrupted):
        again.run(cells, stopping=lambda: sum(again.steps().values()) >= 2 * STEPS + 3)
    again.run(cells)
    assert again.steps() == stored.steps()
    assert all(Result(again.store, cell) == Result(stored.store, cell) for cell in cells)
    same = [
        identical(Result(online.store, a).weights, Result(stored.store, b).weights)
        for a, b in zip(before, cells, strict=True)
    ]
    assert same == [False, True], "KD reads logits, FitNet features"

    teacher = stored.context().teacher(stored.ref)
    shared = SharedTeacher(teacher, (PROTOCOL.mean, (0.5, 0.4, 0.3)), PROTOCOL)
    student_run = StudentRun(cells[0], PROTOCOL, stored.data, teacher, stored.store.run("x" * 64))
    batches = [next(iter(stored.data.batches(0, epoch))) for epoch in (1, 2)]
    kept = [shared.outputs(batch, [student_run]) for batch in batches]
    shared.store_logits(stored.data, 0)
    for batch, usually in zip(batches, kept, strict=True):
        found = shared.outputs(batch, [student_run])
        assert found and usually and shared.logits is not None and len(shared.logits) == SAMPLES
        assert torch.equal(found.logits, shared.logits[batch.student().indices])
        assert not torch.allclose(found.logits, usually.logits, atol=1e-3), "another crop"
        assert (found.logits - usually.logits).abs().mean() < usually.logits.std(), "of the same image"


def test_batch_statistics_of_maps_of_one_place_end_well(bench: Bench):
    """What is deployed is measured in the end, on images enough to have statistics."""
    legacy = {"legacy": ["statistics"]}
    cell = make_cell(PROTOCOL, "data", "simkd.stages", "MobileNetV2", 0, bench.ref, legacy, {})
    bench.run([cell])
    assert bench.states([cell]) == ["done"], bench.store.run(cell).status


def test_a_second_view_reaches_student_and_teacher(bench: Bench, data: ImageData):
    (cell,) = bench.cells([("mlld", {})])
    teacher = bench.context().teacher(bench.ref)
    student_run = StudentRun(cell, PROTOCOL, data, teacher, bench.store.run(cell))
    batch = next(iter(data.batches(0, 1)))
    kept = SharedTeacher(teacher, (PROTOCOL.mean, (0.5, 0.4, 0.3)), PROTOCOL).outputs(batch, [student_run])
    assert kept is not None
    given = batch.student(2)
    assert given.second is not None and not torch.equal(given.second, given.inputs)
    seen = given.second * torch.tensor(PROTOCOL.std).view(3, 1, 1) / torch.tensor((0.5, 0.4, 0.3)).view(3, 1, 1)
    assert torch.allclose(kept.second.logits, teacher(seen, fields=()).logits, rtol=1e-3, atol=1e-4)
    assert batch.student().second is None
    with pytest.raises(LookupError, match="views=2"):
        _ = teacher(given.inputs).second


def test_block_kd_without_stones_is_kd_to_the_bit(alone: Callable[[Cell], Result], bench: Bench):
    """The first line of the ablation table."""
    block, kd = bench.cells([("block_kd", {"active_stones": ()}), ("kd", {"ce": 1.0, "kd": 1.0})])
    assert identical(alone(block).weights, alone(kd).weights)


DOT = {"name": "dot", "delta": 0.075}


def test_dot_by_definition():
    """Algorithm 1 of the paper, and mdistiller's rule for parameters that one kind of terms reaches."""
    torch.manual_seed(0)
    start = [torch.randn(3, dtype=torch.float64) for _ in range(3)]
    parameters = [torch.nn.Parameter(value.clone()) for value in start]
    config = Optimizer(lr=0.1, momentum=0.9, weight_decay=0.01, **DOT)
    optimizer = optimizers.build(parameters, 0.1, config)
    momenta: dict[tuple[int, str], Tensor | float] = dict.fromkeys(
        itertools.product(range(3), ("task", "distill")), 0.0
    )
    values = [value.clone() for value in start]
    reached = {"task": (0, 1), "distill": (0, 2)}
    rates = {(0, "task"): 0.825, (0, "distill"): 0.975, (1, "task"): 0.9, (2, "distill"): 0.9}
    for _ in range(5):
        gradients = {
            kind: {i: 2 * values[i] * (1 + j) for i in which} for j, (kind, which) in enumerate(reached.items())
        }
        for (i, kind), rate in rates.items():
            decay = 0.01 * values[i] if (i, kind) != (0, "distill") else 0.0
            momenta[i, kind] = rate * momenta[i, kind] + gradients[kind][i] + decay
        values = [value - 0.1 * (momenta[i, "task"] + momenta[i, "distill"]) for i, value in enumerate(values)]
        a, b, c = (parameter.pow(2).sum() for parameter in parameters)
        optimizer.backward_and_step(Losses(task={"a": a, "b": b}, distill={"a": 2 * a, "c": 2 * c}))
    for parameter, value in zip(parameters, values, strict=True):
        assert torch.allclose(parameter, value, rtol=1e-12)


def test_dot_without_distillation_is_sgd():
    torch.manual_seed(0)
    start = torch.randn(4)
    found = []
    for change in ({}, DOT):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = optimizers.build([parameter], 0.1, Optimizer(lr=0.1, weight_decay=0.01, **change))
        for _ in range(4):
            optimizer.backward_and_step(Losses(task={"task": parameter.pow(4).sum()}))
        found.append(parameter.detach())
    assert torch.allclose(*found, rtol=1e-6)


def test_dot_in_a_group_and_resumed(bench: Bench, alone: Callable[[Cell], Result], tmp_path: Path):
    """Optimisers of a row's own share the teacher's pass with the others, and resume to the same bits."""
    plain, other = bench.cells([("kd", {}), ("dkd", {})])
    protocol = PROTOCOL.with_optimizer(DOT)
    dotted = make_cell(protocol, "data", "kd", STUDENT, 0, bench.ref, {}, {})
    assert dotted.key != plain.key and dotted.group() == plain.group()
    bench.run([dotted])
    expected = Result(bench.store, dotted)
    again = Bench(tmp_path / "again", bench.data)
    with pytest.raises(Interrupted):
        again.run([plain, dotted, other], stopping=lambda: again.steps()[dotted.label] >= 8)
    again.run([plain, dotted, other])
    assert Result(again.store, dotted) == expected != Result(again.store, plain)
    assert Result(again.store, plain) == alone(plain)


def test_adamw_over_one_cycle_follows_torch_and_resumes_exactly(tmp_path: Path, data: ImageData):
    adamw = Optimizer(name="adamw", lr=0.005, weight_decay=0.01)
    protocol = PROTOCOL.model_copy(update={"name": "cycle", "optimizer": adamw, "schedule": "onecycle"})
    results = []
    for name, stops in (("straight", ()), ("stopped", (1, 3, 2))):
        bench = Bench(tmp_path / name, data)
        cell = make_cell(protocol, "data", "feature_only", STUDENT, 0, bench.ref, {"samples": 40, "per_class": 4}, {})
        for stop in stops:
            asked = functools.partial(lambda steps, stop, label: steps()[label] >= stop, bench.steps, stop, cell.label)
            with pytest.raises(Interrupted):
                local.run([cell], dataclasses.replace(bench.context(stopping=asked), protocol=protocol))
        local.run([cell], dataclasses.replace(bench.context(), protocol=protocol))
        results.append(Result(bench.store, cell))
    assert results[0] == results[1]
    parameter = torch.nn.Parameter(torch.zeros(1))
    reference = torch.optim.AdamW([parameter], lr=1.0)
    steps = steps_per_epoch(SAMPLES, protocol)
    schedule = torch.optim.lr_scheduler.OneCycleLR(reference, max_lr=0.005, total_steps=EPOCHS * steps)
    for epoch, record in enumerate(results[0].records, 1):
        while schedule.last_epoch < epoch * steps - 1:
            reference.step()
            schedule.step()
        assert record["lr"] == pytest.approx(reference.param_groups[0]["lr"], rel=1e-5)


def test_what_a_protocol_cannot_give_is_said_before_training(bench: Bench, data: ImageData):
    teacher, run = bench.context().teacher(bench.ref), bench.store.run("x" * 64)
    (semckd, mlld, kd) = bench.cells([("semckd", {"batch_size": 32}), ("mlld", {}), ("at", {})])
    with pytest.raises(UserError, match="needs batches of at most 32 samples, the protocol has 64"):
        StudentRun(semckd, PROTOCOL, data, teacher, run)
    with pytest.raises(UserError, match="needs two views"):
        StudentRun(mlld, PROTOCOL.model_copy(update={"second_view": ""}), data, teacher, run)
    bench.run([semckd, kd])
    assert bench.states([semckd, kd]) == ["refused", "done"]
    assert StudentRun(kd, PROTOCOL.model_copy(update={"batch_size": 1}), data, teacher, run)
    (fitnet,) = bench.cells([("fitnet", {})])
    with pytest.raises(UserError, match="needs batches of at least 2 samples, the protocol has 1"):
        StudentRun(fitnet, PROTOCOL.model_copy(update={"batch_size": 1}), data, teacher, run)


def test_a_checkpoint_of_other_code_is_left_behind(bench: Bench, alone: Callable[[Cell], Result]):
    (cell,) = bench.cells([("kd", {})])
    with pytest.raises(Interrupted):
        bench.run([cell], stopping=lambda: bench.steps()[cell.label] >= 3)
    run = bench.store.run(cell)
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    del checkpoint["counted"]
    run.write("checkpoint.pt", to_bytes(checkpoint))
    bench.run([cell])
    assert "another version of the code" in " ".join(bench.said) and differing(bench, [cell], alone) == []


# --- results


def test_student_pt_is_what_timm_loads_and_measures_what_is_recorded(bench: Bench):
    (cell,) = bench.cells([("kd", {})])
    bench.run([cell])
    run = bench.store.run(cell)
    model = timm.create_model(f"kd_{STUDENT}", num_classes=10)
    model.load_state_dict(torch.load(run / "student.pt", weights_only=True), strict=True)
    x = bench.data.test.images.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (PROTOCOL.mean, PROTOCOL.std))
    with torch.no_grad():
        right = model.eval()((x - mean) / std).argmax(1) == bench.data.test.labels
    assert run.status["last"]["top1"] == pytest.approx(100 * float(right.float().mean()), abs=1e-4)
    assert run.metrics[-1]["metrics"] == run.status["last"]
    assert run.status["best"]["top1"] == max(record["metrics"]["top1"] for record in run.metrics)
    assert [record["epoch"] for record in run.metrics] == [1, 2]
    assert [record["lr"] for record in run.metrics] == pytest.approx([0.05, 0.005])
    assert set(run.metrics[0]["losses"]) == {"task", "kd"}


def test_a_cell_of_the_store_may_be_the_teacher(bench: Bench):
    own = make_cell(PROTOCOL, "data", "student", TEACHER, 0, None, {}, {})
    ref = TeacherRef(TEACHER, PROTOCOL.mean, PROTOCOL.std, cell=own.key)
    taught = make_cell(PROTOCOL, "data", "kd", STUDENT, 0, ref, {}, {})
    bench.run([own])
    bench.run([taught])
    network = bench.context().teacher(ref)
    assert identical(dict(network.module.state_dict()), torch.load(bench.store.run(own) / "student.pt"))
    (by_file,) = bench.cells([("kd", {})])
    bench.run([by_file])
    assert not identical(Result(bench.store, taught).weights, Result(bench.store, by_file).weights)


def test_training_learns(bench: Bench):
    """Random guessing gives ten per cent."""
    long = PROTOCOL.model_copy(update={"epochs": 12, "recipe_epochs": 12, "milestones": (9,)})
    cell = make_cell(long, "data", "student", STUDENT, 0, None, {}, {})
    context = bench.context()
    data = ImageData(bench.data.train, bench.data.test, 10, long, CPU)
    local.run([cell], local.Context(bench.store, long, data, CPU, context.weights, context.report, context.say))
    records = bench.store.run(cell).metrics
    assert records[-1]["metrics"]["top1"] > 45
    assert records[-1]["losses"]["task"] < 0.5 * records[0]["losses"]["task"]


# --- learning rate and random streams


def rates(protocol: Protocol, student: str) -> list[float]:
    return [protocol.lr(student) * protocol.lr_at(epoch)[0] for epoch in range(1, protocol.epochs + 1)]


def test_learning_rate_of_the_field_s_recipe():
    recipe = load_protocol("cifar100-crd240")
    wanted = [0.05] * 150 + [0.005] * 30 + [0.0005] * 30 + [0.00005] * 30
    assert rates(recipe, "resnet20") == pytest.approx(wanted)
    for small in ("MobileNetV2", "ShuffleV1", "ShuffleV2"):
        assert rates(recipe, small) == pytest.approx([value / 5 for value in wanted])


def test_learning_rate_of_a_shortened_recipe():
    assert rates(load_protocol("cifar100-short"), "resnet20") == pytest.approx([0.05] * 7 + [0.005, 0.0005, 0.00005])
    recipe = load_protocol("cifar100-crd240")
    assert rates(recipe.changed(epochs=24), "resnet20") == pytest.approx(
        [0.05] * 15 + [0.005] * 3 + [0.0005] * 3 + [0.00005] * 3
    )
    assert rates(recipe.changed(epochs=1), "resnet20") == [0.05]
    assert rates(recipe.changed(epochs=480), "resnet20")[299:301] == pytest.approx([0.05, 0.005])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_backbone_learns_at_its_share_of_the_rate(name: str):
    """As two optimisers of their own would; the rate that is recorded is the full one."""
    torch.manual_seed(0)
    start = [torch.randn(3), torch.randn(3)]
    together, apart = ([torch.nn.Parameter(value.clone()) for value in start] for _ in range(2))
    config = Optimizer(name=name, lr=1.0, weight_decay=0.1, backbone=0.01)  # type: ignore[arg-type]
    one = optimizers.build(together, 1.0, config, slow=together[:1])
    two = [optimizers.build([p], 1.0, config.model_copy(update={"backbone": 1.0})) for p in apart]
    for lr in (0.3, 0.1, 0.2):
        one.set_lr(lr, 0.9)
        for optimizer, share in zip(two, (0.01, 1.0), strict=True):
            optimizer.set_lr(lr * share, 0.9)
        one.backward_and_step(Losses(task={"task": sum(p.square().sum() for p in together)}))  # type: ignore[dict-item]
        for optimizer, p in zip(two, apart, strict=True):
            optimizer.backward_and_step(Losses(task={"task": p.square().sum()}))
        assert one.param_groups[0]["lr"] == lr
    assert all(torch.allclose(a, b) for a, b in zip(together, apart, strict=True))
    assert (apart[0] - start[0]).norm() < 0.1 * (apart[1] - start[1]).norm()


def test_the_optimiser_gets_the_rate_of_the_epoch(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    used: list[tuple[tuple[int, int], float]] = []
    step = StudentRun.step

    def watch(self: StudentRun, *arguments: Any) -> None:
        position = self.position
        step(self, *arguments)
        used.append((position, self.optimizer.param_groups[0]["lr"]))

    monkeypatch.setattr(StudentRun, "step", watch)
    (cell,) = bench.cells([("student", {})])
    with pytest.raises(Interrupted):
        bench.run([cell], stopping=lambda: len(used) >= STEPS + 2)
    bench.run([cell])
    assert [position for position, _ in used] == [(e, s) for e in (1, 2) for s in range(STEPS)]
    assert [rate for _, rate in used] == pytest.approx([0.05] * STEPS + [0.005] * STEPS)


def test_seeds_of_different_purposes_differ():
    seeds = [
        derive(seed, *purpose)
        for seed in range(5)
        for purpose in (
            ("student",), ("method",), ("stream",), *(("order", e) for e in (1, 2, 11)),
            *(("augmentation", e, s) for e in (1, 2, 11) for s in (1, 2, 11)),
        )
    ]  # fmt: skip
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_stream_is_apart_from_the_global_generator():
    torch.manual_seed(1)
    outside = torch.rand(5)
    torch.manual_seed(1)
    one, other = Stream(7, CPU), Stream(7, CPU)
    drawn: dict[str, list[Tensor]] = {"one": [], "other": [], "outside": []}
    for i in range(5):
        with one.active():
            drawn["one"].append(torch.rand(1))
        torch.rand(0)
        with other.active():
            drawn["other"].append(torch.rand(1))
        drawn["outside"].append(torch.rand(1))
        if i == 2:  # as a checkpoint does
            saved = [state.clone() for state in one.state]
            one = Stream(99, CPU)
            one.state = saved
    assert torch.equal(torch.cat(drawn["one"]), torch.cat(drawn["other"]))
    assert torch.equal(torch.cat(drawn["outside"]), outside)
    assert len(torch.cat(drawn["one"]).unique()) == 5
    with Stream(8, CPU).active():
        assert not torch.equal(torch.rand(1), drawn["one"][0])


def test_a_stream_is_put_away_after_an_error():
    stream = Stream(7, CPU)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), stream.active():
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(before, torch.get_rng_state())


# --- the process that may be killed


def process(folder: Path, cases: Sequence[Case], *options: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, __file__, str(folder), json.dumps(list(cases)), *options]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.Popen(
        arguments, cwd=REPO, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def main() -> None:
    """Train cases in a folder. With ``--kills``, in a child that is killed so many times, and started again.

    Half of the kills come from outside at a random time after a step, half from within while a file is written.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", type=json.loads)
    parser.add_argument("--save-seconds", type=float, default=NEVER)
    parser.add_argument("--kills", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(3)
    for attempt in range(options.kills):
        # Nothing has been computed in this process yet, so a fork of it is as good as a new one, and starts at once.
        moment, (reader, writer) = chance.randrange(1, 5), os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            if attempt % 2:
                kill_while_writing(moment)
            work(options, functools.partial(os.write, writer, b"."))
            os._exit(0)
        os.close(writer)
        for _ in range(moment):
            os.read(reader, 1)
        time.sleep(chance.random() * 0.05)
        if not attempt % 2:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reader)
        if os.WIFSIGNALED(status):
            print(json.dumps({"event": "killed"}), flush=True)
        elif status:
            sys.exit(f"the child failed with {status}")
    work(options, lambda: None)


def kill_while_writing(moment: int) -> None:
    """Die at the ``moment``-th checkpoint, when it is written to its temporary name."""
    fsync, left = os.fsync, moment

    def die(handle: int) -> None:
        nonlocal left
        name = str(Path(f"/proc/self/fd/{handle}").readlink())
        if ".checkpoint.pt." in name:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    files.os.fsync = die


def work(options: argparse.Namespace, step: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    bench = Bench(options.folder, tiny_data())

    def report(student_run: StudentRun, event: str) -> None:
        print(json.dumps({"cell": student_run.cell.label, "event": event}), flush=True)
        if event == "step":
            step()

    bench.report = report  # type: ignore[method-assign]
    bench.run(bench.cells([(name, values) for name, values in options.cases]), save_seconds=options.save_seconds)


if __name__ == "__main__":
    main()
