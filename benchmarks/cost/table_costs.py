"""The costs that a table shows: each row in each column alone, in a fresh process, once per machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict

from kd_methods.errors import UserError

from ..common import environment
from ..common.console import counted
from ..common.process.signals import stop_signals
from ..common.workspace import Workspace
from ..report.collect_cost import Cost
from ..report.model import CostEntry
from ..store import documents
from ..store.cell import Cell
from ..store.runs import Store, today
from ..training.failures import Interrupted
from .measuring import cost_key


def measure_missing(cells: Iterable[Cell], workspace: Workspace, measure: Callable[[Cell], CostEntry]) -> int:
    """Measure the cells whose cost the store does not have; returns how many could not be.

    Args:
        cells: those of a table.
        workspace: where.
        measure: a cell's figures in a fresh process; the engines have it.

    Raises:
        Interrupted: the user asked to stop.
    """
    store, machine = Store(workspace.output), environment.machine(workspace.device)
    wanted = {cost_key(cell, machine): cell for cell in cells}
    missing = {
        key: cell
        for key, cell in wanted.items()
        if not documents.read_or_set_aside(store.cost(key), Cost, workspace.say) and store.run(cell).state != "refused"
    }
    if missing:
        workspace.say(f"measuring the cost of {counted(len(missing), 'row')} alone")
    failed = 0
    with stop_signals() as stopping:
        for key, cell in missing.items():
            if stopping():
                raise Interrupted
            if store.cost(key).is_file():  # by another command meanwhile
                continue
            try:
                cost = measure(cell)
            except UserError as error:  # its row stays without a cost
                workspace.say(str(error))
                failed += 1
                continue
            facts = {**environment.describe(workspace.device), "date": today()}
            documents.write(store.cost(key), {"label": cell.label, "cost": asdict(cost), "environment": facts})
    return failed
