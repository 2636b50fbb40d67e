"""What is shown while cells train."""

from __future__ import annotations

import io
from typing import Any

import pytest
from helpers.stores import cell
from rich.console import Console

from benchmarks.common.events import CellEnded, EpochEnded, EpochRecord, Said, Stepped
from benchmarks.config.protocol import load_protocol
from benchmarks.driver.progress import Reporter, told_apart

PROTOCOL = load_protocol("digits-demo").model_copy(update={"epochs": 4, "batch_size": 10})
STEPS = 10


def test_what_is_saved_is_not_counted_again() -> None:
    saved = {"saved": 2, "in an epoch": 1}
    report = Reporter(4, PROTOCOL, 10 * STEPS, "top1", saved)
    assert report.total == 4 * 4 * STEPS - 3 * STEPS
    for key, position in {"new": (1, 1), "saved": (3, 1), "in an epoch": (2, 8), "phases": (-1, 1)}.items():
        report(Stepped(key, key, position))
        report(Stepped(key, key, position))
    report(Stepped("new", "new", (1, 6), steps=4))
    assert report.steps == 12
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
        cell, figures = ("key", "kd/a-b/s0"), {"top1": 50.0}
        record = EpochRecord(epoch=4, phase="", losses={}, metrics=figures)
        for event in (Stepped(*cell, (4, 1)), EpochEnded(*cell, record), CellEnded(*cell, "done", last=figures)):
            report(event)
        report(Said("the last word"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"progress cannot be shown ({type(error).__name__}: ")
    assert lines[1].startswith("[1/1] kd/a-b/s0  top1 50.00") and lines[2:] == ["the last word"]


def test_cells_of_one_label_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """Two rows of one method, and two that differ in nothing of its settings."""
    kd, beside, dkd = cell("kd", 0), cell("kd", 0), cell("dkd", 0)
    kd.settings.update(ce=0.1, kd=0.9, temperature=4.0)
    beside.settings.update(ce=1.0, kd=0.0, temperature=4.0)
    assert told_apart([kd, beside, dkd, cell("kd", 1)]) == {
        kd.key: f"{kd.label} (ce=0.1, kd=0.9)", beside.key: f"{kd.label} (ce=1.0, kd=0.0)",
    }  # fmt: skip
    other = cell("dkd", 0, init="teacher")
    names = told_apart([dkd, other])
    assert names == {one.key: f"{dkd.label} ({one.key[:8]})" for one in (dkd, other)}
    with Reporter(2, PROTOCOL, 10 * STEPS, "top1", names=names) as report:
        report(CellEnded(other.key, other.label, "done", last={"top1": 50.0}))
    assert f"[1/2] {names[other.key]}  top1 50.00" in capsys.readouterr().err
