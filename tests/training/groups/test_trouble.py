"""A method that fails, a group that does not fit into memory, a full disk: nothing else of the group is lost."""

from __future__ import annotations

import errno
import gc
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_bench import FEW, STEPS, Case, Result, TrainingBench, differing
from helpers.watchers import CellEvent

from benchmarks.common import files
from benchmarks.store.cell import Cell
from benchmarks.tasks.images import ImageData
from benchmarks.training.loop import CHECK_EVERY
from benchmarks.training.student_run import StudentRun
from kd_methods import registry
from kd_methods.contract import Batch, Card, DataInfo, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from kd_methods.errors import UserError


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
    bench: TrainingBench, alone: Callable[[Cell], Result], kind: str, state: str, text: str
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
    bench = TrainingBench(tmp_path, data)
    (cell,) = bench.cells([("test_trouble", {"kind": "nan", "step": 6})])
    bench.run([cell])
    run = bench.store.run(cell)
    assert run.state == "diverged" and "epoch 2" in run.status["message"]
    assert [record["epoch"] for record in run.metrics] == [1]
    assert bench.steps()[cell.label] <= 6 + CHECK_EVERY


def test_out_of_memory_splits_the_group(
    bench: TrainingBench, alone: Callable[[Cell], Result], monkeypatch: pytest.MonkeyPatch
):
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


def test_out_of_memory_alone_fails_that_cell(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch):
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
    bench: TrainingBench, alone: Callable[[Cell], Result], monkeypatch: pytest.MonkeyPatch, too_large: str
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

    def watch(event: CellEvent) -> None:
        nonlocal full
        report(event)
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
