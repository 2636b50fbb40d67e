"""A table's manifest, plan.json: which cells it shows. With the store it determines the table completely.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

from kd_methods.errors import UserError

from ..common.files import locked
from . import documents


class Document(BaseModel):
    """Part of a manifest: unknown fields are skipped, fields that earlier versions did not write have defaults."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class PlannedTeacher(Document):
    """A column's teacher.

    identity       as in the cells that learn from it
    cell           the key of the cell that trains it, or empty
    entry, origin  the name of its file's entry, and which published set that belongs to; ``here``: trained by a cell
    trained_under  the protocol of that training, where it is not the students', in words
    accuracy       what its file measures by the column's metric
    off            whether that is something else than its entry expects
    """

    identity: dict[str, Any]
    cell: str = ""
    entry: str = ""
    origin: str = "here"
    trained_under: str = ""
    accuracy: float | None = None
    off: bool = False


class PlannedColumn(Document):
    """A teacher-student pair on a task; ``data`` is the fingerprint of the task's data.

    The titles are the networks' names as tables print them, empty where an earlier version planned the table.
    """

    key: str
    teacher_network: str
    student: str
    teacher_title: str = ""
    student_title: str = ""
    lr: float
    task: str = ""
    metric: str
    metric_title: str
    data: str = ""
    init: str = ""
    teacher: PlannedTeacher


class PlannedRow(Document):
    """A method as a row; ``published`` is its row of the published values, ``defaults`` are the method's settings."""

    key: str
    method: str
    title: str
    family: str
    published: str | None = None
    optimizer: str = ""
    our_choice: tuple[str, ...] = ()
    student: str = ""
    init: str = ""
    defaults: dict[str, Any] = {}


class PlannedCell(Document):
    """Which run stands in a place of the table.

    published_settings  whether its settings are those that are published for the method and the pair
    taught              whether it has a teacher
    """

    row: str
    column: str
    seed: int
    key: str
    settings: dict[str, Any]
    published_settings: bool
    taught: bool

    @property
    def place(self) -> tuple[str, str]:
        return self.row, self.column


class PlannedCost(Document):
    """Where the cost of a row in a column is kept."""

    row: str
    column: str
    key: str

    @property
    def place(self) -> tuple[str, str]:
        return self.row, self.column


class EfficiencyRows(Document):
    """The rows that the second table of a feature-only table compares."""

    ours: str
    against: tuple[str, ...]


class Manifest(Document):
    """What a table shows; the cells are keys of runs in the store."""

    name: str
    title: str
    published: str = ""
    sources: tuple[str, ...] = ()
    quoted: dict[str, str] = {}
    efficiency: EfficiencyRows | None = None
    recipe: str
    protocol: dict[str, Any]
    protocol_lines: tuple[str, ...]
    lr: float
    deviations: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    row_order: tuple[str, ...] = ()
    column_order: tuple[str, ...] = ()
    columns: tuple[PlannedColumn, ...]
    rows: tuple[PlannedRow, ...]
    cells: tuple[PlannedCell, ...]
    costs: tuple[PlannedCost, ...] = ()


def merge(old: Manifest | None, new: Manifest) -> Manifest:
    """Add a plan to what the table showed before, so that a run of some rows or columns loses nothing.

    An old entry stays if its protocol is the same, and in its column the teacher and the data; what was computed
    otherwise would mix with the new cells, and is left out of the table (it stays in the store).
    """
    if not old or old.protocol != new.protocol:
        return new
    data = {column.task: column.data for column in new.columns}
    if any(data.get(column.task, column.data) != column.data for column in old.columns):
        return new
    teachers = {column.key: column.teacher.identity for column in new.columns}
    settings = {cell.place: cell.settings for cell in new.cells}
    seeds = {(*cell.place, cell.seed) for cell in new.cells}
    before = {column.key: column.teacher.identity for column in old.columns}

    def stays(cell: PlannedCell) -> bool:
        same_teacher = not cell.taught or before[cell.column] == teachers.get(cell.column, before[cell.column])
        same_settings = settings.get(cell.place, cell.settings) == cell.settings
        return (*cell.place, cell.seed) not in seeds and same_teacher and same_settings

    cells = (*filter(stays, old.cells), *new.cells)
    shown = {cell.place for cell in cells}
    measured = {cost.place for cost in new.costs}
    costs = tuple(cost for cost in old.costs if cost.place in shown - measured)
    return new.model_copy(
        update={
            "cells": cells,
            "costs": (*costs, *new.costs),
            "rows": _joined(old.rows, new.rows, {row for row, _ in shown}, new.row_order),
            "columns": _joined(old.columns, new.columns, {column for _, column in shown}, new.column_order),
        }
    )


Described = TypeVar("Described", bound=PlannedRow | PlannedColumn)


def _joined(
    old: Sequence[Described], new: Sequence[Described], shown: set[str], order: Sequence[str]
) -> tuple[Described, ...]:
    """Old and new rows or columns that still show something, in the table's order; the new description wins."""
    by_key = {item.key: item for item in [*old, *new] if item.key in shown}
    place = {key: i for i, key in enumerate(order)}
    ordered: list[Described] = sorted(by_key.values(), key=lambda item: place.get(item.key, len(order)))
    return tuple(ordered)


def path(output: Path, stem: str) -> Path:
    """Where a table's manifest lies."""
    return output / "tables" / stem / "plan.json"


def load(output: Path, stem: str) -> Manifest | None:
    """A table's manifest, or None where nothing was ever planned under that name.

    Raises:
        Damaged: it is not what was written; file and place are named.
    """
    remedy = "move it away and run the table again; of what was run before, it shows the rows that are run then"
    return documents.read(path(output, stem), Annotated[Manifest, BeforeValidator(_upgraded)], remedy)


def save(output: Path, stem: str, new: Manifest) -> Manifest:
    """Merge a plan into the table's manifest and write it; of several processes none loses another's rows."""
    with locked(path(output, stem).parent):
        merged = merge(load(output, stem), new)
        documents.write(path(output, stem), merged.model_dump(mode="json"))
    return merged


def existing(output: Path, stem: str) -> Manifest:
    """A table's manifest.

    Raises:
        UserError: nothing was ever planned under that name.
        Damaged: it is not what was written.
    """
    if found := load(output, stem):
        return found
    known = ", ".join(stems(output)) or "none"
    raise UserError(f"no table '{stem}' in {output} (there: {known}); run it first")


def stems(output: Path) -> list[str]:
    """The folders of the tables of a store."""
    return sorted(path.parent.name for path in (output / "tables").glob("*/plan.json"))


def adopt(output: Path, stem: str, theirs: Manifest) -> tuple[Manifest | None, Manifest]:
    """Let a table show what it shows elsewhere, as far as that goes together; what is here stays.

    Returns:
        What it showed before, and what it shows now.
    """
    with locked(path(output, stem).parent):
        ours = load(output, stem)
        joined = merge(theirs, ours) if ours else theirs
        if joined != ours:
            documents.write(path(output, stem), joined.model_dump(mode="json"))
    return ours, joined


def _upgraded(raw: Any) -> Any:
    """The fields as they are now; before there were tables of several tasks, all columns shared theirs."""
    if not isinstance(raw, dict) or not isinstance(raw.get("columns"), list):
        return raw
    shared = {name: raw[name] for name in ("metric", "metric_title", "data") if name in raw}
    columns = [{**shared, **column} if isinstance(column, dict) else column for column in raw["columns"]]
    return {**raw, "efficiency": raw.get("efficiency") or None, "columns": columns}


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with those of a combination's parts as ``part.key``."""
    flattened: dict[str, Any] = {}
    for key, value in settings.items():
        inner = flat(value) if isinstance(value, dict) else None
        flattened |= {key: value} if inner is None else {f"{key}.{name}": x for name, x in inner.items()}
    return flattened
