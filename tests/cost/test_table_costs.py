"""Costs that a table shows are measured once, and again where what was kept is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.common.workspace import Workspace
from benchmarks.cost.measuring import cost_key
from benchmarks.cost.table_costs import measure_missing
from benchmarks.report.model import CostEntry
from benchmarks.store.cell import Cell
from benchmarks.store.runs import Store

FIGURES = CostEntry(
    images_per_second=100.0, peak_memory_bytes=1, memory_kind="k", extra_train_params=0, extra_inference_params=0,
    batch_size=64, device="cpu", steps=3,
)  # fmt: skip


def cell(seed: int) -> Cell:
    protocol = {"batch_size": 64, "precision": "fp32"}
    return Cell("digits", "data", protocol, 0.1, "resnet8", "kd", 1, {"alpha": seed}, seed)


@pytest.mark.parametrize("spoilt", ["", "{", "[]", '{"label": "x"}', "changed"])
def test_costs_are_measured_once_unless_damaged(tmp_path: Path, spoilt: str) -> None:
    said: list[str] = []
    measured: list[Cell] = []
    workspace = Workspace(torch.device("cpu"), output=tmp_path, say=said.append)

    def measure(cell: Cell) -> CostEntry:
        measured.append(cell)
        return FIGURES

    cells = [cell(0), cell(1), cell(2)]
    Store(tmp_path).run(cells[2]).set_status("refused", message="not for this pair")
    for _ in range(2):
        assert measure_missing(cells, workspace, measure) == 0
        assert measured == cells[:2], "each once, but not what is not for the pair"
    path, other = sorted((tmp_path / "costs").glob("*.json"))
    content = path.read_text()
    path.write_text(content.replace("100.0", "101.0") if spoilt == "changed" else spoilt)
    said.clear()
    assert measure_missing(cells, workspace, measure) == 0 and len(measured) == 3
    assert str(path) in said[0] and f"{path.name}.damaged-1" in said[0]
    assert path.read_text() == content and other.is_file()


def test_what_a_step_costs_depends_on_the_samples_that_are_trained_on() -> None:
    """Methods may keep something of each, and data of the suite may be there in part."""
    held_out = {**cell(0).protocol, "holdout": 100}
    others = (replace(cell(0), seed=1), replace(cell(0), data="other data"), replace(cell(0), protocol=held_out))
    assert [cost_key(other, "a machine") == cost_key(cell(0), "a machine") for other in others] == [True, False, False]
