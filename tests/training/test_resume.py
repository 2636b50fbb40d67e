"""Kills, stops and checkpoints that cannot be used: a cell goes on to the same bits."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.training_bench import EPOCHS, FEW, STEPS, Case, Result, TrainingBench, differing
from helpers.training_process import process

from benchmarks.common.weights import to_bytes
from benchmarks.driver.engines import local
from benchmarks.store.cell import Cell
from benchmarks.store.exchange import export, import_
from benchmarks.tasks.images import ImageData
from benchmarks.training.failures import Interrupted
from kd_methods.errors import DiskError


@pytest.mark.parametrize("save_seconds", [0.0, pytest.param(600.0, marks=pytest.mark.slow)])
def test_killed_anywhere_and_resumed(bench: TrainingBench, alone: Callable[[Cell], Result], save_seconds: float):
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
def test_stopped_and_resumed(bench: TrainingBench, alone: Callable[[Cell], Result], after: int):
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


def test_a_change_of_what_bits_depend_on_is_said_and_stays_with_the_run(
    bench: TrainingBench, monkeypatch: pytest.MonkeyPatch
):
    (cell,) = bench.cells([("kd", {})])
    with pytest.raises(Interrupted):
        bench.run([cell], stopping=lambda: sum(bench.steps().values()) > STEPS)
    assert bench.said == []
    usual = local.environment.numerics
    monkeypatch.setattr(local.environment, "numerics", lambda device: {**usual(device), "threads": 99})
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
    final = TrainingBench(tmp_path / "final", data)
    for i, (case, stop) in enumerate(zip(cases, stops, strict=True)):
        if stop:
            single = TrainingBench(tmp_path / str(i), data)
            (cell,) = single.cells([case])
            with pytest.raises(Interrupted):
                single.run([cell], stopping=lambda b=single, s=stop: sum(b.steps().values()) >= s)
            shutil.copytree(single.store.run(cell).path, final.store.run(cell).path)
    cells = final.cells(cases)
    final.run(cells)
    assert differing(final, cells, alone) == []
    assert [final.steps()[cell.label] for cell in cells] == [EPOCHS * STEPS - stop for stop in stops]


def test_an_unfinished_run_goes_on_in_another_store(tmp_path: Path, data: ImageData, alone: Callable[[Cell], Result]):
    """Packed where it was stopped, in the middle of an epoch, and taken elsewhere."""
    here, there = TrainingBench(tmp_path / "here", data), TrainingBench(tmp_path / "there", data)
    cell, _ = stopped(here, after=STEPS + 2)
    exported = export(here.store.root, tmp_path / "runs.zip", runs=[cell.key], also=["unfinished"])
    assert (exported.runs, exported.begun, exported.left_out) == (0, 1, 0)
    assert import_(tmp_path / "runs.zip", there.store.root).begun == (cell.label,)
    there.run([cell])
    assert Result(there.store, cell) == alone(cell)
    assert there.steps()[cell.label] == EPOCHS * STEPS - STEPS - 2, "nothing is computed again"


def test_killed_after_the_last_checkpoint_and_before_the_end(bench: TrainingBench, alone: Callable[[Cell], Result]):
    (cell,) = bench.cells([("kd", {})])
    bench.run([cell])
    run = bench.store.run(cell)
    (run / "student.pt").unlink()
    (run / "metrics.json").unlink()
    run.set_status("running", epoch=EPOCHS, epochs=EPOCHS)
    bench.events.clear()
    bench.run([cell])
    assert not bench.steps() and Result(bench.store, cell) == alone(cell)


def stopped(bench: TrainingBench, name: str = "kd", after: int = 2) -> tuple[Cell, Path]:
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


ENTRIES = {"student", "method", "optimizer", "stream", "scaler", "position", "records", "sums", "counted", "seconds"}
"""Of a checkpoint; without fp16 nothing is in the scaler's, and nothing is read of it."""


@pytest.mark.parametrize(
    "what", ["half", "bit", "list", "another cell's", "other epochs", *sorted(ENTRIES - {"scaler"})]
)
def test_a_checkpoint_that_cannot_be_used_is_kept_aside_and_its_cell_starts_again(
    bench: TrainingBench, alone: Callable[[Cell], Result], what: str
):
    cell, path = stopped(bench)
    assert set(torch.load(path, weights_only=True)) == {*ENTRIES, "cell"}
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
    bench: TrainingBench, alone: Callable[[Cell], Result], monkeypatch: pytest.MonkeyPatch, code: int
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


def test_a_checkpoint_of_other_code_is_left_behind(bench: TrainingBench, alone: Callable[[Cell], Result]):
    (cell,) = bench.cells([("kd", {})])
    with pytest.raises(Interrupted):
        bench.run([cell], stopping=lambda: bench.steps()[cell.label] >= 3)
    run = bench.store.run(cell)
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    del checkpoint["counted"]
    run.write("checkpoint.pt", to_bytes(checkpoint))
    bench.run([cell])
    assert "another version of the code" in " ".join(bench.said) and differing(bench, [cell], alone) == []
