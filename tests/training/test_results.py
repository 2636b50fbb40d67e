"""What a finished cell leaves: weights that timm loads, the metrics that were measured, a teacher for others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from helpers.training_bench import CPU, PROTOCOL, STUDENT, TEACHER, Result, TrainingBench, identical

from benchmarks import timm_models  # noqa: F401  # kd_ models
from benchmarks.driver.engines import local
from benchmarks.store.cell import TeacherRef
from benchmarks.store.make_cell import Distillation, make_cell
from benchmarks.tasks.images import ImageData
from kd_methods.errors import UserError


def test_student_pt_is_what_timm_loads_and_measures_what_is_recorded(bench: TrainingBench):
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


def test_what_a_method_watches_is_recorded_as_it_is_at_the_end_of_each_epoch(bench: TrainingBench):
    with_layers, plain = bench.cells([("letkd2", {"words": 8, "subclasses": 2}), ("kd", {})])
    bench.run([with_layers, plain])
    first, last = (record["watched"] for record in bench.store.run(with_layers).metrics)
    weights = torch.load(bench.store.run(with_layers) / "student.pt", weights_only=True)
    assert set(last) == {"g_T_intermediate", "g_T_penultimate"} == set(first) and first != last
    assert set(last.values()) <= {float(value) for value in weights.values() if not value.dim()}
    assert "watched" not in bench.store.run(plain).metrics[-1]


def test_a_cell_of_the_store_may_be_the_teacher(bench: TrainingBench):
    student_cell = make_cell(PROTOCOL, "data", TEACHER, Distillation("student"))
    ref = TeacherRef(TEACHER, PROTOCOL.mean, PROTOCOL.std, cell=student_cell.key)
    taught = make_cell(PROTOCOL, "data", STUDENT, Distillation("kd", ref))
    bench.run([student_cell])
    bench.run([taught])
    network = bench.context().teacher(ref)
    assert identical(dict(network.module.state_dict()), torch.load(bench.store.run(student_cell) / "student.pt"))
    (by_file,) = bench.cells([("kd", {})])
    bench.run([by_file])
    assert not identical(Result(bench.store, taught).weights, Result(bench.store, by_file).weights)


def test_a_teacher_s_file_is_the_one_that_was_planned_with(bench: TrainingBench):
    """Another file may have been installed under the same name since: its results would have the old one's keys."""
    assert bench.context().teacher(bench.ref)
    weights = torch.load(bench.file, weights_only=True)
    weights["fc.bias"] += 1e-6
    torch.save(weights, bench.file)
    with pytest.raises(UserError, match=r"teacher.pt has other weights than when the run was planned"):
        bench.context().teacher(bench.ref)


def test_training_learns(bench: TrainingBench):
    """Random guessing gives ten per cent."""
    long = PROTOCOL.model_copy(update={"epochs": 12, "recipe_epochs": 12, "milestones": (9,)})
    cell = make_cell(long, "data", STUDENT, Distillation("student"))
    context = bench.context()
    data = ImageData(bench.data.train, bench.data.test, 10, long, CPU)
    local.run([cell], replace(context, protocol=long, data=data))
    records = bench.store.run(cell).metrics
    assert records[-1]["metrics"]["top1"] > 45
    assert records[-1]["losses"]["task"] < 0.5 * records[0]["losses"]["task"]
