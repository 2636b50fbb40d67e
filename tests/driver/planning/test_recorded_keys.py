"""Cells that were computed are found again: the keys of some, as they were recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.common.workspace import Workspace
from benchmarks.driver.planning.plan import Request, make

RECORDED = [
    ("table1", "student", "resnet20-resnet8", 0, "3a601bd77eb4505e"),
    ("table1", "kd", "resnet20-resnet8", 1, "4d8ec7360a36fed0"),
    ("table1", "block_kd", "vgg11-vgg8", 0, "2eda1ad411ed9c77"),
    ("table2", "at", "vgg8-MobileNetV2", 0, "84f27cee304c303f"),
]
"""Table in its demo, row, column, seed, and the beginning of the key, recorded on 2026-11-22."""


@pytest.mark.parametrize(("table", "row", "column", "seed", "key"), RECORDED)
def test_the_key_of_a_cell_stays(table: str, row: str, column: str, seed: int, key: str, tmp_path: Path) -> None:
    """Another key would compute finished work again; where a result changes, a version is raised, and the key here."""
    workspace = Workspace(torch.device("cpu"), tmp_path / "data", tmp_path / "checkpoints", tmp_path / "results")
    plan = make(Request(table, "demo", methods=(row,), pairs=(column,), seeds=(seed,)), workspace)
    assert plan.cells[row, column, seed].key[:16] == key
