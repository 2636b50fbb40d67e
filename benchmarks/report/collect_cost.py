"""Out of the store into a cost table: what was measured of a table's rows. Imports no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

from typing_extensions import TypedDict

from kd_methods.errors import Damaged

from .. import report
from ..common.console import say
from ..store import documents
from ..store.manifest.shapes import Manifest, PlannedCost
from ..store.runs import Store
from .provenance import provenance
from .seed_statistics import summarise


class Cost(TypedDict):
    """A file of costs/: the cost of a training step, and where it was measured."""

    label: str
    cost: report.CostEntry
    environment: documents.Environment


def measured_costs(
    manifest: Manifest, store: Store, say: Callable[[str], None] = say
) -> list[tuple[PlannedCost, Cost]]:
    """What was measured of a table's rows, once for each row and column."""
    measured: dict[tuple[str, str], tuple[PlannedCost, Cost]] = {}
    for planned in manifest.costs:
        try:
            figures = documents.read(store.cost(planned.key), Cost)
        except Damaged as error:
            say(f"missing in the table of costs: {error}")
            continue
        if figures:
            measured[planned.place] = planned, figures
    return list(measured.values())


def collect_cost(
    manifest: Manifest, store: Store, table: report.Table, say: Callable[[str], None] = say
) -> report.CostTable | None:
    """The cost table's content out of the store, or None where no cost was measured; rows are those that were run."""
    measured: dict[str, dict[str, report.CostEntry]] = {}
    facts: list[documents.Environment] = []
    for planned, figures in measured_costs(manifest, store, say):
        entry = replace(figures["cost"], machine=figures["environment"]["machine"])
        measured.setdefault(planned.row, {})[planned.column] = entry
        facts.append(figures["environment"])
    if not measured:
        return None
    rows = tuple(
        report.CostRow(row.key, row.title, row.family, measured.get(row.key, {}), _refused(row))
        for row in table.rows
        if row.key in measured or any(summarise(entry).n for entry in row.entries.values())
    )
    return report.CostTable(table.name, table.title, _costed(manifest, table), rows, provenance(facts))


def _costed(manifest: Manifest, table: report.Table) -> tuple[report.Column, ...]:
    """The first column of each pair on each task: a cell that stands in several, one for each metric, costs once.

    It is the first in which it has a result; a mean over tasks costs nothing.
    """
    cells: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for cell in manifest.cells:
        cells[cell.column] += (cell.key,)
    refusals = Counter(key for row in table.rows for key in _refused(row))
    known = [column for column in table.columns if column.key in cells]
    first: dict[tuple[str, ...], report.Column] = {}
    for column in sorted(known, key=lambda column: refusals[column.key]):
        first.setdefault(cells[column.key], column)
    return tuple(column for column in known if column in first.values())


def _refused(row: report.TableRow) -> frozenset[str]:
    return frozenset(key for key, entry in row.entries.items() if any(run.status == "refused" for run in entry.runs))
