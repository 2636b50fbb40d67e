"""What is shown while cells train."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from benchmarks.config.protocol import load_protocol
from benchmarks.driver.progress import Reporter

PROTOCOL = load_protocol("digits-demo").model_copy(update={"epochs": 4, "batch_size": 10})
STEPS = 10


def student_run(name: str, epoch: int, step: int, first_epoch: int = 1) -> Any:
    """A cell that has made the given number of steps of an epoch."""
    records = [{"losses": {"task": 1.0}, "metrics": {"top1": 50.0}, "epoch": epoch, "phase": ""}]
    run = SimpleNamespace(path=Path(name), status={"message": "why"})
    cell = SimpleNamespace(label=name)
    return SimpleNamespace(cell=cell, run=run, position=(epoch, step), records=records, first_epoch=first_epoch)


def test_what_is_saved_is_not_counted_again() -> None:
    saved = {Path("saved"): 2, Path("in an epoch"): 1}
    report = Reporter(4, PROTOCOL, 10 * STEPS, "top1", saved)
    assert report.total == 4 * 4 * STEPS - 3 * STEPS
    for case in (
        student_run("new", 1, 1),
        student_run("saved", 3, 1),
        student_run("in an epoch", 2, 8),
        student_run("phases", -1, 1, -1),
    ):
        report(case, "step")
        report(case, "step")
    assert report.steps == 8
    assert report.total == (4 + 2 + 4 + 6) * STEPS - (1 * STEPS + 7)


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), RuntimeError("a display's own")])
def test_a_display_that_fails_is_no_cell_s_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    monkeypatch.setattr(
        "benchmarks.driver.progress._Console", lambda **_: Console(file=io.StringIO(), force_terminal=True)
    )

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with Reporter(1, PROTOCOL, 10 * STEPS, "top1") as report:
        assert report.live
        monkeypatch.setattr(report.live, "update", fail)
        for event in ("step", "epoch", "done"):
            report(student_run("kd/a-b/s0", 4, 1), event)
        report.say("the last word")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"progress cannot be shown ({type(error).__name__}: ")
    assert lines[1].startswith("[1/1] kd/a-b/s0  top1 50.00") and lines[2:] == ["the last word"]
