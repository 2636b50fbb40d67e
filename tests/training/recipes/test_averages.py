"""Averaged weights: their formula, what of a cell they are, and that training goes on to the same bits with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.training_bench import FEW, MIXED, STEPS, Case, Result, TrainingBench, identical, tiny_data
from helpers.training_process import process
from timm.utils import ModelEmaV2
from torch import nn

from benchmarks.training.averages import Averages
from benchmarks.training.failures import Interrupted
from benchmarks.training.student_run import StudentRun

CASES: list[Case] = [*FEW, ("kd", {}), ("simkd", {}), ("crd", {}), ("ab", {})]
"""FEW have auxiliary logits and random numbers; the others a deployed end of the teacher's, a memory, a first phase."""


def mixed_bench(folder: Path) -> TrainingBench:
    return TrainingBench(folder, tiny_data(protocol=MIXED), MIXED)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def test_the_formula_is_timms():
    torch.manual_seed(0)
    module, constant = network(), network()
    mine, theirs = Averages([module, constant], 0.9, [constant]), ModelEmaV2(module, 0.9)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        module(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        mine.update()
        theirs.update(module)
    trained = {name: value.clone() for name, value in module.state_dict().items()}
    with mine.in_place():
        averaged = {name: value.clone() for name, value in module.state_dict().items()}
    assert identical(dict(module.state_dict()), trained), "afterwards the weights are as trained, to the bit"
    moved = 0
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(averaged[name], value, atol=1e-7), name
            moved += not torch.allclose(averaged[name], trained[name], atol=1e-4)
    assert moved >= 5
    mine.start()
    with mine.in_place():
        assert identical(dict(module.state_dict()), trained), "an average begins with the weights as they are"


def test_without_a_decay_nothing_is_kept():
    averages = Averages([network()], 0.0)
    averages.update()
    with averages.in_place():
        assert averages.values == []


def test_what_is_evaluated_and_saved_are_the_averages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bench = mixed_bench(tmp_path)
    runs: list[StudentRun] = []
    finish = StudentRun.finish
    monkeypatch.setattr(StudentRun, "finish", lambda self: runs.append(self) or finish(self))
    cells = bench.cells(CASES)
    bench.run(cells)
    assert [run.cell for run in runs] == cells
    for run in runs:
        saved = torch.load(bench.store.run(run.cell) / "student.pt", weights_only=True)
        trained = {name: value.clone() for name, value in run.deployed.state_dict().items()}
        with run.averages.in_place():
            assert identical(saved, {k: v.contiguous() for k, v in run.deployed.state_dict().items()}), run.cell.label
            measured = run.evaluate()
        assert any(not torch.equal(saved[name], value) for name, value in trained.items()), run.cell.label
        last = bench.store.run(run.cell).metrics[-1]
        assert (measured.pop(""), measured) == (last["metrics"], last["probes"])
        run.deployed.load_state_dict(saved)
        assert run.evaluate()[""] == last["metrics"], "a saved student measures what its run says"


@pytest.mark.slow  # by default a stop, and kills of plain runs
@pytest.mark.parametrize("save_seconds", [0.0, 600.0])
def test_killed_anywhere_and_resumed_with_averages_and_mixed_images(tmp_path: Path, save_seconds: float):
    alone, killed = mixed_bench(tmp_path / "alone"), mixed_bench(tmp_path / "killed")
    cells = alone.cells(FEW)
    for cell in cells:
        alone.run([cell])
    options = ("--save-seconds", str(save_seconds), "--kills", "6", "--mixed")
    finished = process(killed.folder, FEW, *options)
    out, _ = finished.communicate(timeout=240)
    assert finished.returncode == 0, out
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert sum(line["event"] == "killed" for line in lines) >= 2
    for cell in cells:
        resumed = Result(killed.store, cell)
        assert resumed == Result(alone.store, cell) and resumed.checkpoint["averages"], cell.label


def test_a_group_with_mixed_images_ends_as_its_cells_alone_and_after_a_stop(tmp_path: Path):
    group, alone, stopped = (mixed_bench(tmp_path / name) for name in ("group", "alone", "stopped"))
    cells = group.cells(CASES)
    group.run(cells)
    for after in (len(cells) * STEPS + 3, 2):
        with pytest.raises(Interrupted):
            stopped.run(cells, stopping=lambda n=after: sum(stopped.steps().values()) >= n)
    stopped.run(cells)
    for cell in cells:
        alone.run([cell])
        assert Result(group.store, cell) == Result(alone.store, cell) == Result(stopped.store, cell), cell.label


def test_averages_change_nothing_of_the_training(tmp_path: Path):
    """The weights as trained are those of a cell without averages."""
    plain = MIXED.model_copy(update={"ema": 0.0})
    both = [mixed_bench(tmp_path / "mixed"), TrainingBench(tmp_path / "plain", tiny_data(protocol=plain), plain)]
    trained = []
    for bench in both:
        (cell,) = bench.cells([("kd", {})])
        bench.run([cell])
        trained.append(Result(bench.store, cell))
    assert identical(trained[0].checkpoint["student"], trained[1].checkpoint["student"])
    assert not identical(trained[0].weights, trained[1].weights)


def test_averages_of_other_weights_are_not_taken_over():
    averages = Averages([network()], 0.5)
    with pytest.raises(ValueError, match="those of other weights"):
        averages.load(averages.values[:-1])
