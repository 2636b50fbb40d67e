"""A plan beside what the table showed before, so that nothing is lost and nothing mixed. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from ...common.console import counted
from ...common.yaml_files import merged
from ...config.changed_rows import changed_id, changed_title, flat
from .shapes import Manifest, PlannedCell, PlannedColumn, PlannedCost, PlannedRow


class MergedManifest(NamedTuple):
    """A manifest with what it showed before, and in words what it shows elsewhere or no longer."""

    manifest: Manifest
    said: tuple[str, ...]


def merge(old: Manifest | None, new: Manifest) -> MergedManifest:
    """Add a plan to what the table showed before, so that a run of some rows or columns loses nothing.

    Old cells whose settings are others than the new ones of their row are from now on a row of their own. What was
    computed otherwise (another protocol, teacher, data, code) would mix with the new cells: it is left out of the
    table, is named, and stays in the store.
    """
    if not old:
        return MergedManifest(_ordered(new), ())
    if old.protocol != new.protocol:
        changed = [key for key in {**old.protocol, **new.protocol} if old.protocol.get(key) != new.protocol.get(key)]
        text = _replaced({f"another protocol ({', '.join(changed)})": {"the table": len(old.cells)}})
        return MergedManifest(_ordered(new), (text,))
    beside = _Beside(old, new)
    shown_before: dict[tuple[str, str, int], PlannedCell] = {}
    rows = {row.key: row for row in old.rows}
    moved: dict[tuple[str, str], PlannedRow] = {}
    replaced: dict[str, Counter[str]] = {}
    planned_again = [cell for cell in old.cells if beside.has(cell)]
    for cell in (cell for cell in old.cells if not beside.has(cell)):
        reason, changes = beside.compared(cell)
        target = cell
        if changes and not reason:
            moved[cell.place] = row = _changed_row(rows[cell.row], changes)
            target = cell.model_copy(update={"row": row.key, "published_settings": False})
        if not reason and beside.keys.get((*target.place, target.seed), target.key) != target.key:
            reason = "another setting, teacher or code"
        if reason:
            replaced.setdefault(reason, Counter())[rows[cell.row].title] += 1
        elif (*target.place, target.seed) not in beside.keys:
            shown_before[(*target.place, target.seed)] = target
    cells = (*shown_before.values(), *new.cells)
    shown, still = ({cell.place for cell in which} for which in (cells, (*planned_again, *shown_before.values())))
    costs = [cost for old_cost in old.costs if (cost := _moved_cost(old_cost, moved)).place in still]
    old_rows = [*old.rows, *{row.key: row for row in moved.values() if row.key not in rows}.values()]
    both = new.model_copy(
        update={
            "cells": cells,
            "costs": (*(cost for cost in costs if cost not in new.costs), *new.costs),
            "deviations": _deviations(old.deviations if shown_before else (), new),
            "rows": _joined(old_rows, new.rows, {row for row, _ in shown}),
            "columns": _joined(old.columns, _measured(old.columns, new.columns), {column for _, column in shown}),
        }
    )
    names = dict.fromkeys((rows[key].title, row.title) for (key, _), row in moved.items())
    said = [f"{before} was run with other settings before: that is the row {now} now" for before, now in names]
    return MergedManifest(_ordered(both), (*said, *([_replaced(replaced)] if replaced else [])))


def _deviations(old: Sequence[str], new: Manifest) -> tuple[str, ...]:
    """Of what is shown still, and of the new plan, which says of its own tasks' data what is so now."""
    planned = tuple(f"{column.task} has " for column in new.columns)
    return tuple(dict.fromkeys((*(text for text in old if not text.startswith(planned)), *new.deviations)))


class _Beside:
    """What a new plan says of the rows, columns and places of old cells."""

    def __init__(self, old: Manifest, new: Manifest) -> None:
        self.old_rows, self.rows = ({row.key: row for row in side.rows} for side in (old, new))
        self.old_columns, self.columns = ({column.key: column for column in side.columns} for side in (old, new))
        self.data = {column.task: column.data for column in new.columns}
        self.cells = {cell.place: cell for cell in new.cells}
        self.keys = {(*cell.place, cell.seed): cell.key for cell in new.cells}

    def has(self, cell: PlannedCell) -> bool:
        return self.keys.get((*cell.place, cell.seed)) == cell.key

    def compared(self, cell: PlannedCell) -> tuple[str, dict[str, Any]]:
        """Why an old cell cannot stand beside the new ones, or which of its settings make it a row of its own."""
        column, row = self.old_columns[cell.column], self.old_rows[cell.row]
        if self.data.get(column.task, column.data) != column.data:
            return "other data", {}
        if now := self.columns.get(cell.column):
            if (now.teacher_network, now.student, now.init) != (column.teacher_network, column.student, column.init):
                return f"another pair called {cell.column}", {}
            if now.data != column.data:
                return "other data", {}
            if now.lr != column.lr:
                return "another learning rate", {}
            if cell.taught and now.teacher.identity != column.teacher.identity:
                return "another teacher", {}
        new_row = self.rows.get(cell.row)
        if new_row is None:
            return "", {}
        if reason := _other_row(row, new_row):
            return reason, {}
        new_cell = self.cells.get(cell.place)
        if new_cell:
            settings = cell.settings, new_cell.settings
        elif row.settings is not None and new_row.settings is not None:
            settings = merged(row.defaults, row.settings), merged(new_row.defaults, new_row.settings)
        else:
            return "", {}
        before, after = map(flat, settings)
        if before.keys() != after.keys():
            return "another set of settings", {}
        changes = {key: value for key, value in before.items() if after[key] != value}
        if new_cell and not changes and new_cell.series != cell.series and "" not in (new_cell.series, cell.series):
            return "another teacher, code or version", {}
        return "", changes


def _other_row(old: PlannedRow, new: PlannedRow) -> str:
    """What beside its settings makes a row another one than it was, in words."""
    facts = {
        "method": "another method", "optimizer": "another optimiser", "student": "another network",
        "init": "another start",
    }  # fmt: skip
    if old.code and new.code:
        facts["code"] = "another version of the method"
    return next((text for name, text in facts.items() if getattr(old, name) != getattr(new, name)), "")


def _changed_row(row: PlannedRow, changes: dict[str, Any]) -> PlannedRow:
    named = {"key": changed_id(row.key, changes), "title": changed_title(row.title, changes), "published": ""}
    return row.model_copy(update={**named, "base": row.base or row.key, "changes": {**row.changes, **changes}})


def _moved_cost(cost: PlannedCost, moved: Mapping[tuple[str, str], PlannedRow]) -> PlannedCost:
    return cost.model_copy(update={"row": moved[cost.place].key}) if cost.place in moved else cost


def _replaced(counts: Mapping[str, Mapping[str, int]]) -> str:
    """In one line, which cells a table no longer shows, and why."""
    texts = []
    for reason, titles in counts.items():
        cells = ", ".join(f"{title} ({counted(number, 'cell')})" for title, number in titles.items())
        texts.append(f"as there is {reason} now: {cells}")
    return f"no longer in the table, {'; '.join(texts)}; what was computed stays in the store"


Described = TypeVar("Described", bound=PlannedRow | PlannedColumn)


def _joined(old: Sequence[Described], new: Sequence[Described], shown: set[str]) -> tuple[Described, ...]:
    """Old and new rows or columns that still show something; the new description wins."""
    return tuple({item.key: item for item in [*old, *new] if item.key in shown}.values())


def _measured(old: Sequence[PlannedColumn], new: Sequence[PlannedColumn]) -> list[PlannedColumn]:
    """The new columns; a teacher that nobody learns from now, and so was not measured, stays as it was measured."""
    before = {column.key: column.teacher for column in old if column.teacher.accuracy is not None}

    def known(column: PlannedColumn) -> PlannedColumn:
        measured = before.get(column.key)
        if not measured or column.teacher.accuracy is not None or measured.identity != column.teacher.identity:
            return column
        return column.model_copy(update={"teacher": measured})

    return [known(column) for column in new]


def _ordered(shown: Manifest) -> Manifest:
    """The same in the table's order, whatever was run first.

    A row with changed settings stands behind the one that it changes; what is not of the table, by its key, behind all
    that is.
    """
    rows = _in_order(shown.rows, shown.row_order)
    columns = _in_order(shown.columns, shown.column_order)
    row_places = {row.key: i for i, row in enumerate(rows)}
    column_places = {column.key: i for i, column in enumerate(columns)}

    def position(item: PlannedCell | PlannedCost) -> tuple[int, int]:
        return row_places.get(item.row, len(rows)), column_places.get(item.column, len(columns))

    cells = sorted(shown.cells, key=lambda cell: (*position(cell), cell.seed))
    costs = sorted(shown.costs, key=position)
    return shown.model_copy(update={"rows": rows, "columns": columns, "cells": tuple(cells), "costs": tuple(costs)})


def _in_order(items: Sequence[Described], order: Sequence[str]) -> tuple[Described, ...]:
    place = {key: i for i, key in enumerate(dict.fromkeys([*order, *sorted(item.key for item in items)]))}

    def position(item: Described) -> tuple[int, int]:
        return place.get(getattr(item, "base", ""), place[item.key]), place[item.key]

    return tuple(sorted(items, key=position))
