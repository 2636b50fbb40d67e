"""A plan in words."""

from __future__ import annotations

from collections.abc import Sequence

from ..common import environment
from ..common.units import duration
from ..common.workspace import Workspace
from ..store.cell import Cell
from .estimate import estimate
from .plan import Plan

DAY = 86400.0


def print_plan(plan: Plan, todo: Sequence[Cell], workspace: Workspace) -> None:
    """Say what would be run: protocol, teachers, the arithmetic of each cell, and the hours on the device."""
    say = workspace.say
    say(f"{plan.table.name}: {plan.table.title}  (preset {plan.preset})")
    for line in plan.lines():
        say(f"  {line}")
    say(f"  rows {', '.join(row.id for row in plan.rows)}; seeds {', '.join(map(str, plan.seeds))}")
    for (network, task), ref in plan.teachers.items():
        origin = (
            f"file {ref.entry}" if ref.entry else "no file installed: trained first (see teachers list, fetch, add)"
        )
        say(f"  teacher {network}{f' on {task}' * (len(plan.tasks) > 1)}: {origin}")
    keys = {cell.key for cell in todo}
    total = estimate(plan, keys, workspace)
    told: set[str] = set()
    for pair in plan.pairs:
        for row in plan.rows:
            cells = [plan.cells[row.id, pair.id, seed] for seed in plan.seeds]
            if told.issuperset(cell.key for cell in cells):  # another metric of cells that are listed
                continue
            told.update(cell.key for cell in cells)
            stored = sum(cell.key not in keys for cell in cells)
            work = total.operations.get(cells[0].key)
            each = "" if work is None else f", {work / 1e15:8.3g} PFLOP each"
            say(f"  {pair.id:26s} {row.id:16s} {len(cells)} cells, {stored} stored{each}")
    for cell in plan.training:
        state = "to train" if cell.key in keys else "stored"
        work = total.operations.get(cell.key)
        say(f"  teacher {cell.student:18s} {state}" + ("" if work is None else f", {work / 1e15:8.3g} PFLOP"))
    span = f"about {duration(total.seconds)}" if total.operations or not keys else "their time is not estimated"
    say(f"{len(keys)} cells to run on {environment.machine(workspace.device)}: {span}")
    if total.seconds > DAY and "short" in plan.table.presets and plan.preset != "short":
        say(f"that is more than a day; a first look: ./reproduce.sh {plan.source} --preset short")
