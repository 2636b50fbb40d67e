"""What `doctor` says of a machine: what is there, and which presets can run with it."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers.command_line import Call

from benchmarks.cli.doctor import runnable
from benchmarks.tasks import task_names


def test_doctor_says_what_can_be_run(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("doctor", "--data-root", tmp_path / "none" / "at" / "all")
    assert code == 0
    for words in (
        "versions   python",
        f"torch {torch.__version__}"[:10],
        "numerics ",
        "fp32 in full",
        "digits: 1437 training samples",
        "no CIFAR100 below",
        *(f"extra      {extra}: " for extra in ("text", "detection", "cluster", "track")),
        *(f"data       {name}: " for name in task_names()),
    ):
        assert words in out
    assert "writable, 0 runs" in out and "none installed" in out
    assert "table      table2: presets that can run now: demo" in out
    assert not list((tmp_path / "results").iterdir()), "it leaves nothing behind"


def test_doctor_names_a_store_that_cannot_be_written(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, out, _ = call("doctor", "--output", tmp_path / "file" / "below")
    assert code == 0 and "store      cannot write" in out


def test_a_preset_can_run_where_every_column_has_its_data_and_the_extra_is_there() -> None:
    """Table 5 has eight tasks of GLUE in its columns, of which its protocol names one."""
    columns = {f"glue/{name}" for name in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")}
    assert runnable("table5", {"glue/sst2"}, set()) == []
    assert runnable("table5", {"glue/cola", "glue/mrpc", "glue/sst2", "glue/stsb"}, set()) == ["short"]
    assert runnable("table5", columns, set()) == ["paper", "short"]
    assert runnable("table5", {*columns, "grammar"}, {"text"}) == []
    assert runnable("table4", {"shapes"}, {"text"}) == ["demo"]
    assert runnable("table4", {"shapes", "coco"}, {"detection"}) == []
    assert runnable("table1", {"digits"}, {"text", "detection"}) == ["demo"]
