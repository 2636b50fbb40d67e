"""Which part of a table is printed. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from kd_methods.errors import UserError, unknown

from ..common.console import counted, first_of
from ..config.table_spec import without_task
from .manifest.shapes import Manifest, PlannedColumn

NAMED = 5
"""So many of the rows, pairs and seeds that are left out are named."""


@dataclass(frozen=True)
class Selection:
    """Which rows, columns and seeds of a table are wanted, in their order; empty: all that there are."""

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


ALL = Selection()


def selected(shown: Manifest, wanted: Selection) -> Manifest:
    """What is wanted of a table; a pair's name without a task means its columns on all tasks.

    Raises:
        UserError: the table has no such row, column or seed.
    """
    rows = {row.key: row for row in shown.rows}
    columns: dict[str, list[PlannedColumn]] = {}
    for column in shown.columns:
        for name in {column.key, without_task(column.key)}:
            columns.setdefault(name, []).append(column)
    seeds = {cell.seed for cell in shown.cells}
    for what, names, known in (("row", wanted.rows, rows), ("pair", wanted.columns, columns)):
        for name in names:
            if name not in known:
                raise unknown(f"{what} of this table in the store", name, known)
    if missing := [str(seed) for seed in wanted.seeds if seed not in seeds]:
        there = ", ".join(map(str, sorted(seeds)))
        raise UserError(f"no run of this table in the store has seed {', '.join(missing)} (there: {there})")
    new_rows = {key: rows[key] for key in wanted.rows or rows}
    new_columns = {column.key: column for name in wanted.columns or columns for column in columns[name]}
    in_place = [item for item in shown.cells if item.row in new_rows and item.column in new_columns]
    return shown.model_copy(
        update={
            "rows": tuple(new_rows.values()),
            "columns": tuple(new_columns.values()),
            "cells": tuple(cell for cell in in_place if cell.seed in (wanted.seeds or seeds)),
            "costs": tuple(cost for cost in shown.costs if cost.row in new_rows and cost.column in new_columns),
        }
    )


def left_out(shown: Manifest, chosen: Manifest) -> str:
    """What of a table a part of it does not have, in one line; empty where that is nothing."""
    rows, columns = {row.key for row in chosen.rows}, {column.key for column in chosen.columns}
    titles = [row.title for row in shown.rows if row.key not in rows]
    pairs = [column.key for column in shown.columns if column.key not in columns]
    seeds = sorted({cell.seed for cell in shown.cells} - {cell.seed for cell in chosen.cells})
    counts = [
        f"{counted(len(names), what)} ({first_of(names, NAMED)})"
        for what, names in (("row", titles), ("pair", pairs), ("seed", [str(seed) for seed in seeds]))
        if names
    ]
    return f"left out, as not asked for: {', '.join(counts)}; `render` shows all that the store has" if counts else ""
