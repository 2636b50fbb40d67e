"""The figures of docs/scale.md are those of the tables as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.common.workspace import Workspace
from benchmarks.driver.planning import scale
from benchmarks.driver.planning.plan import Plan

PAGE = (Path(__file__).parents[3] / "docs" / "scale.md").read_text(encoding="utf-8")
STALE = "the tables have changed: put what ./reproduce.sh show scale prints into docs/scale.md"


@pytest.fixture
def where(tmp_path: Path) -> Workspace:
    return Workspace(torch.device("cpu"), tmp_path, tmp_path, tmp_path)


@pytest.fixture
def plan(where: Workspace) -> Plan:
    return scale.both(where)


def test_what_is_counted_of_the_tables(plan: Plan) -> None:
    lines = list(scale.counts(plan))
    terms, total = next(line.split("|")[1:3] for line in lines if line.startswith("| cells: "))
    cells = int(total.replace(",", ""))
    assert eval(terms.removeprefix(" cells: ").replace("x", "*")) == len(plan.every_cell()) == cells
    assert "\n".join(lines) in PAGE, STALE


@pytest.mark.slow
def test_arithmetic_and_hours(plan: Plan, where: Workspace) -> None:
    assert "\n".join(scale.hours(plan, where)) in PAGE, STALE


def test_hours_of_a_part_of_the_tables(where: Workspace) -> None:
    """Where every place is free the slowest decides, and no GPU is lent twice."""
    part = scale.both(where, pairs=("resnet56-resnet20",), methods=("student", "kd"))
    lines = [line for line in scale.hours(part, where) if line.startswith(("| 1 |", "| 8 |"))]
    (one, *_, share_of_one), (eight, *_, share) = (
        [cell.strip(" %") for cell in line.split("|")[4:-1]] for line in lines
    )
    assert share_of_one == "100" and int(one) > int(eight) and 0 < int(share) < 100
