"""A cell ends in the bits in which it would end alone, whatever is trained beside it, and is computed once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_bench import (
    ALL,
    COMPOSED_FOR_IMAGES,
    EPOCHS,
    FEW,
    STEPS,
    TEACHER,
    Case,
    Result,
    TrainingBench,
    differing,
    identical,
)
from helpers.training_process import process
from torch import Tensor

from benchmarks.driver.engines import local
from benchmarks.networks import NetworkView
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.tasks.images import ImageData
from benchmarks.training.student_run import StudentRun
from kd_methods.contract import Batch, Outputs


@pytest.mark.parametrize(
    "cases",
    [ALL[::2], *(pytest.param(cases, marks=pytest.mark.slow) for cases in (ALL[1::2], COMPOSED_FOR_IMAGES))],
    ids=["even", "odd", "composed"],
)
def test_a_cell_alone_is_the_cell_in_any_group_and_the_teacher_stays_as_it_was(
    bench: TrainingBench, alone: Callable[[Cell], Result], monkeypatch: pytest.MonkeyPatch, cases: Sequence[Case]
):
    built: list[NetworkView] = []
    teacher = local.Context.teacher

    def watch(self: local.Context, ref: TeacherRef) -> NetworkView:
        built.append(teacher(self, ref))
        return built[-1]

    monkeypatch.setattr(local.Context, "teacher", watch)
    cells = bench.cells(cases)
    taught = [cell for cell in cells if cell.teacher]
    assert len({cell.group() for cell in taught}) == 1
    torch.manual_seed(999)
    bench.run(cells)
    monkeypatch.undo()

    (network,) = built
    assert identical(dict(network.module.state_dict()), dict(torch.load(bench.file, weights_only=True)))
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert not any(module.training for module in network.modules())
    assert differing(bench, cells, alone) == []


def test_also_with_two_threads(tmp_path: Path, data: ImageData):
    torch.set_num_threads(2)
    group = TrainingBench(tmp_path / "group", data)
    cells = group.cells(FEW[1:])
    group.run(cells)
    for i, cell in enumerate(cells):
        single = TrainingBench(tmp_path / str(i), data)
        single.run([cell])
        assert Result(single.store, cell) == Result(group.store, cell), cell.label


def test_the_comparison_notices_a_difference(bench: TrainingBench, alone: Callable[[Cell], Result]):
    """Another seed, other settings and another order of draws give other bits."""
    (cell,) = bench.cells([("block_kd", {"sample_stones": 1})])
    (seed,) = bench.cells([("block_kd", {"sample_stones": 1})], seed=1)
    assert not identical(alone(cell).weights, alone(seed).weights)
    kd, other = bench.cells([("kd", {}), ("kd", {"temperature": 2.0})])
    assert not identical(alone(kd).weights, alone(other).weights)


def test_students_of_one_seed_start_alike_and_see_the_same_batches(
    bench: TrainingBench, monkeypatch: pytest.MonkeyPatch
):
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


def test_methods_of_one_group_share_the_teacher_s_forward_pass(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch):
    """One for each batch, though each of them reads something else of the teacher."""
    passes, teacher, forward = list[int](), type(bench.data.build(TEACHER).module), NetworkView.forward

    def counted(self: NetworkView, x: Tensor, *rest: Any, **named: Any) -> Outputs:
        if type(self.module) is teacher:
            passes.append(len(x))
        return forward(self, x, *rest, **named)

    monkeypatch.setattr(NetworkView, "forward", counted)
    cells = bench.cells([("kd", {}), ("fitnet", {}), ("at", {})])
    bench.run(cells)
    assert bench.steps() == {cell.label: EPOCHS * STEPS for cell in cells}
    assert passes == [64, 64, 64, 8] * EPOCHS


def test_block_kd_without_stones_is_kd_to_the_bit(alone: Callable[[Cell], Result], bench: TrainingBench):
    """The first line of the ablation table."""
    block, kd = bench.cells([("block_kd", {"active_stones": ()}), ("kd", {"ce": 1.0, "kd": 1.0})])
    assert identical(alone(block).weights, alone(kd).weights)


def test_a_second_run_computes_nothing(bench: TrainingBench):
    cells = bench.cells([("student", {}), ("kd", {})])
    bench.run([*cells, *cells])
    assert all(count == EPOCHS * STEPS for count in bench.steps().values())
    content = {path: path.stat().st_mtime_ns for path in bench.store.root.rglob("*") if path.is_file()}
    bench.events.clear()
    bench.run(cells)
    assert bench.events == []
    assert content == {path: path.stat().st_mtime_ns for path in bench.store.root.rglob("*") if path.is_file()}


def test_two_processes_share_a_store(bench: TrainingBench, alone: Callable[[Cell], Result]):
    """Each cell is computed by one of them; when the one that holds it is killed, the other takes it over."""
    cells = bench.cells(FEW)
    both = [process(bench.folder, FEW, "--save-seconds", "0") for _ in range(2)]
    outputs = [one.communicate(timeout=240)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], outputs
    lines = [json.loads(line) for out in outputs for line in out.splitlines() if line.startswith("{")]
    steps = Counter(line["cell"] for line in lines if line["event"] == "step")
    assert steps == {cell.label: EPOCHS * STEPS for cell in cells}
    assert differing(bench, cells, alone) == []
