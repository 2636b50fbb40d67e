"""A plan in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ...common import environment
from ...common.console import counted
from ...common.places import PROGRAM
from ...common.units import duration, flops
from ...common.workspace import Workspace
from ...cost.cards import Speed
from ...store.cell import Cell
from ...store.runs import Store
from ...tasks.stated import Stated
from ..execution.crew import ALONE, Crew
from .estimate import Estimate
from .plan import Plan

DAY = 86400.0


def print_plan(
    plan: Plan,
    cells: Collection[Cell],
    todo: Sequence[Cell],
    workspace: Workspace,
    crew: Crew = ALONE,
    speed: Speed | None = None,
) -> None:
    """Say what would be run: protocol, teachers, the operations of each cell, and the hours on the device.

    ``cells`` are those of a shard or of the whole plan, ``todo`` those of them that are still to run. A row is printed
    as soon as its operations are counted. With ``speed`` the hours are for that device: one for each worker (by default
    one worker), and for each of the processes that share a batch.
    """
    say = workspace.say
    for line in plan.lines():
        say(f"  {line}")
    say(f"  rows {', '.join(row.id for row in plan.rows)}; seeds {', '.join(map(str, plan.seeds))}")
    for source in plan.sources.values():
        if isinstance(source, Stated):
            say(f"  {source.line}")
    for (network, task), ref in plan.teachers.items():
        origin = (
            f"file {ref.entry}" if ref.entry else "no file installed: trained first (see teachers list, fetch, add)"
        )
        say(f"  teacher {network}{f' on {task}' if len(plan.tasks) > 1 else ''}: {origin}")
    store = Store(workspace.output)
    saved = {cell.key: store.run(cell).saved_epochs for cell in todo}
    left = {cell.key: 1 - saved[cell.key] / cell.protocol["epochs"] for cell in todo}
    expected = Estimate(plan, left, workspace, speed)

    def flops_of(cell: Cell, each: str = "") -> str:
        work = expected.operations(cell)
        if work == 0:
            return ", not for this pair"
        return "" if work is None else f", {flops(work)}{each}"

    mine = {cell.key for cell in cells}
    for cell in (cell for cell in plan.training if cell.key in mine):
        state = ("begun" if saved[cell.key] else "to train") if cell.key in left else "stored"
        say(f"  teacher {cell.student:18s} {state if cell.data else 'perhaps to train'}{flops_of(cell)}")
    listed: set[str] = set()
    for pair in plan.pairs:
        for row in plan.rows:
            here = [c for seed in plan.seeds if (c := plan.cells[row.id, pair.id, seed]).key in mine]
            if listed.issuperset(cell.key for cell in here):  # another metric of cells that are listed, or none here
                continue
            listed.update(cell.key for cell in here)
            stored, begun = sum(cell.key not in left for cell in here), sum(bool(saved.get(c.key)) for c in here)
            state = f"{stored} stored" + (f", {begun} begun" if begun else "")
            state = f"{counted(len(here), 'cell')}, {state if here[0].data else 'store not compared'}"
            say(f"  {pair.id:26s} {row.id:16s} {state}{flops_of(here[0], ' each')}")
    most = len(left)
    each = plan.protocol.processes
    workers = min(crew.workers or 1, max(most, 1)) if speed else len(crew.places(workspace.device, most, each))
    seconds = expected.seconds(workers)
    span = "their time is not estimated" if seconds is None else f"about {duration(seconds)}"
    where = (speed.words if speed else environment.machine(workspace.device)) + (
        f" by {counted(workers, 'worker')}" if workers * each > 1 else ""
    )
    where += f" of {each} processes" if each > 1 else ""
    say(f"{counted(len(left), 'cell')} to run on {where}{begun_in(saved)}: {span}")
    if (seconds or 0) > DAY and "short" in plan.table.presets and plan.preset != "short":
        say(f"that is more than a day; a first look: {PROGRAM} {plan.source} --preset short")


def begun_in(saved: Mapping[str, int]) -> str:
    """How many cells go on from epochs that are saved, as a part of a sentence; empty where none does.

    Args:
        saved: the saved epochs of the cells to run, by key.
    """
    begun = [epochs for epochs in saved.values() if epochs]
    return f" ({len(begun)} of them from {counted(sum(begun), 'saved epoch')} on)" if begun else ""
