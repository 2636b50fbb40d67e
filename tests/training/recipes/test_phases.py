"""First phases, second views and stored logits: what a method and a protocol may ask of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_bench import (
    EPOCHS,
    PROTOCOL,
    SAMPLES,
    STEPS,
    TEACHER_STD,
    Case,
    Result,
    TrainingBench,
    differing,
    identical,
    tiny_data,
)
from torch import Tensor

from benchmarks.config.protocol import load_protocol
from benchmarks.store.cell import Cell
from benchmarks.store.make_cell import Distillation, make_cell
from benchmarks.tasks.images import ImageData
from benchmarks.training.failures import Interrupted
from benchmarks.training.loop import protocol_progress, shared
from benchmarks.training.optimizers import WHOLE
from benchmarks.training.student_run import StudentRun
from kd_methods.contract import Progress
from kd_methods.errors import UserError

PHASED: list[Case] = [("ab", {"epochs": 60.0}), ("ft", {}), ("mlld", {}), ("kd", {})]
"""With first phases of two epochs and of one, with two views, and without either."""


@pytest.mark.parametrize("after", [1, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS + 3, 4 * STEPS, 4 * STEPS + 2])
def test_stopped_in_a_first_phase_and_resumed(bench: TrainingBench, alone: Callable[[Cell], Result], after: int):
    """Inside a phase, at its end and just behind it, for student runs of one group that stand at different epochs."""
    cells = bench.cells(PHASED)
    with pytest.raises(Interrupted):
        bench.run(cells, stopping=lambda: sum(bench.steps().values()) >= after)
    bench.run(cells)
    expected = {cells[0].label: 4, cells[1].label: 3, cells[2].label: 2, cells[3].label: 2}
    assert bench.steps() == {label: epochs * STEPS for label, epochs in expected.items()}
    assert differing(bench, cells, alone) == []
    remarks = [bench.store.run(cell).status["remarks"] for cell in cells]
    longer = "also trained in a phase of its own before: {}"
    assert remarks == [[longer.format("boundaries, 2 epochs")], [longer.format("paraphraser, 1 epoch")], [], []]


def test_killed_in_a_first_phase(bench: TrainingBench, alone: Callable[[Cell], Result]):
    """Student runs fall back to checkpoints of their own: one saved in the phase, one after it, one never."""
    cells = bench.cells(PHASED[:3])
    group = bench.group()
    for cell, steps in zip(cells, (3, STEPS + 2, 0), strict=True):
        run = bench.store.create(cell)
        student_run = StudentRun(cell, group, run)
        for done in range(steps):
            epoch, step = student_run.position
            if step == 0 or done == 0:
                student_run.start_epoch(epoch)
            batch = next(iter(bench.data.batches(0, epoch, step)))
            inputs, teacher_outputs = shared(batch, WHOLE, group.teacher, [student_run])
            student_run.step(inputs, teacher_outputs, (epoch, step), protocol_progress(PROTOCOL, epoch))
            if step + 1 == STEPS:
                student_run.end_epoch(epoch)
        if steps:
            student_run.save()
    bench.run(cells)
    assert differing(bench, cells, alone) == []


def test_a_first_phase_comes_before_the_epochs_that_count(bench: TrainingBench):
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


def test_a_phase_moves_only_what_its_losses_reach(bench: TrainingBench, data: ImageData):
    """In FT's first phase the paraphraser alone, not even the student's running statistics; after it all but that."""
    group = bench.group()
    student_run = StudentRun(bench.cells([("ft", {})])[0], group, bench.store.run("x" * 64))

    def step(epoch: int) -> set[str]:
        before = {key: value.clone() for key, value in state(student_run).items()}
        student_run.position = (epoch, 0)
        student_run.start_epoch(epoch)
        batch = next(iter(data.batches(0, epoch)))
        student_run.step(*shared(batch, WHOLE, group.teacher, [student_run]), (epoch, 0), Progress(1, 2))
        return {key.split(".")[1] for key, value in state(student_run).items() if not torch.equal(value, before[key])}

    assert student_run.first_epoch == 0 and step(0) == {"paraphraser"}
    moved = step(1)
    assert "paraphraser" not in moved and {"translator", "module"} <= moved


def state(student_run: StudentRun) -> dict[str, Tensor]:
    networks = {"student": student_run.student, "method": student_run.method}
    return {f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()}


def test_the_optimiser_starts_anew_after_a_phase(bench: TrainingBench):
    student_run = bench.student_run(bench.cells([("fsp", {})])[0])
    parameter = next(student_run.student.parameters())
    momentum: Any = student_run.optimizer.state[parameter]  # type: ignore[attr-defined]
    for position, remembers in (((0, 0), False), ((0, 2), True), ((1, 0), False), ((1, 3), True), ((2, 0), True)):
        momentum["momentum_buffer"] = torch.ones_like(parameter)
        student_run.position = position
        student_run.start_epoch(position[0])
        assert bool(momentum["momentum_buffer"].any()) == remembers, position


def test_stored_logits_are_those_of_one_other_augmentation(tmp_path: Path):
    """Computed once, by image; features stay those of the batch; a stopped run goes on to the same bits."""

    def bench_of(name: str, **values: Any) -> TrainingBench:
        changed = load_protocol("digits-demo").model_copy(update={**usual, "crop_padding": 2, **values})
        return TrainingBench(tmp_path / name, tiny_data(protocol=changed), changed)

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

    group = stored.group()
    teacher, needs = group.teacher, [StudentRun(cells[0], group, stored.store.run("x" * 64)).needs]
    assert teacher is not None
    batches = [next(iter(stored.data.batches(0, epoch))) for epoch in (1, 2)]
    online_outputs = [teacher.outputs(batch, needs) for batch in batches]
    teacher.store_logits(stored.data, 0)
    for batch, usual_outputs in zip(batches, online_outputs, strict=True):
        outputs = teacher.outputs(batch, needs)
        assert outputs and usual_outputs and teacher.logits is not None and len(teacher.logits) == SAMPLES
        assert torch.equal(outputs.logits, teacher.logits[batch.student().indices])
        difference = outputs.logits - usual_outputs.logits
        assert difference.abs().max() > 1e-3, "another crop"
        assert difference.abs().mean() < usual_outputs.logits.std(), "of the same image"


def test_batch_statistics_of_maps_of_one_place_end_well(bench: TrainingBench):
    """What is deployed is measured in the end, on images enough to have statistics."""
    legacy = {"legacy": ["statistics"]}
    cell = make_cell(PROTOCOL, "data", "MobileNetV2", Distillation("simkd.stages", bench.ref, legacy))
    bench.run([cell])
    assert bench.states([cell]) == ["done"], bench.store.run(cell).status


def test_a_second_view_reaches_student_and_teacher(bench: TrainingBench, data: ImageData):
    (cell,) = bench.cells([("mlld", {})])
    shared_teacher = bench.group().teacher
    assert shared_teacher is not None
    teacher = shared_teacher.network
    batch = next(iter(data.batches(0, 1)))
    outputs = shared_teacher.outputs(batch, [bench.student_run(cell).needs])
    assert outputs is not None
    given = batch.student(2)
    assert given.second is not None and not torch.equal(given.second, given.inputs)
    seen = given.second * torch.tensor(PROTOCOL.std).view(3, 1, 1) / torch.tensor(TEACHER_STD).view(3, 1, 1)
    assert torch.allclose(outputs.second.logits, teacher(seen, fields=()).logits, rtol=1e-3, atol=1e-4)
    assert batch.student().second is None
    with pytest.raises(LookupError, match="views=2"):
        _ = teacher(given.inputs).second


def test_what_a_protocol_cannot_give_is_said_before_training(bench: TrainingBench):
    (semckd, mlld, kd) = bench.cells([("semckd", {"batch_size": 32}), ("mlld", {}), ("at", {})])
    with pytest.raises(UserError, match="needs at most 32 samples at once, the protocol has 64"):
        bench.student_run(semckd)
    with pytest.raises(UserError, match="needs two views"):
        bench.student_run(mlld, second_view="")
    bench.run([semckd, kd])
    assert bench.states([semckd, kd]) == ["refused", "done"]
    assert bench.student_run(kd, batch_size=1)
    (fitnet,) = bench.cells([("fitnet", {})])
    for parts in ({"batch_size": 1}, {"accumulate": 64}):
        with pytest.raises(UserError, match="needs at least 2 samples at once, the protocol has 1"):
            bench.student_run(fitnet, **parts)
    assert bench.student_run(semckd, accumulate=2), "what is too much at once fits in parts"
