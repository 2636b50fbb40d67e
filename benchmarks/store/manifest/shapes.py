"""What a table's manifest says. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


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
    saw_holdout    whether its file was trained on the images that are held out
    """

    identity: dict[str, Any]
    cell: str = ""
    entry: str = ""
    origin: str = "here"
    trained_under: str = ""
    accuracy: float | None = None
    off: bool = False
    saw_holdout: bool = False


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


class OurChoice(Document):
    """A setting of a row that no source gives, flat, with its value; ``columns`` is empty where it is all of them."""

    key: str
    value: Any
    columns: tuple[str, ...] = ()


class PlannedRow(Document):
    """A method as a row.

    published  its row of the published values
    defaults   the method's settings, and ``settings`` those that the row itself sets (None: not recorded)
    code       which code computes it: the method's version, and the digest of the plugin that brings it, if one does
    base       the row whose settings this one changes, and ``changes``, flat
    """

    key: str
    method: str
    title: str
    family: str
    published: str | None = None
    optimizer: str = ""
    our_choice: tuple[OurChoice, ...] = ()
    student: str = ""
    init: str = ""
    defaults: dict[str, Any] = {}
    settings: dict[str, Any] | None = None
    code: str = ""
    base: str = ""
    changes: dict[str, Any] = {}


class PlannedCell(Document):
    """Which run stands in a place of the table.

    series              a digest of all that a row's seeds in a column have in common; empty where not recorded
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
    series: str = ""

    @property
    def place(self) -> tuple[str, str]:
        return self.row, self.column


class PlannedCost(Document):
    """Where the cost of a row in a column is kept; of several of one place the last that has figures counts."""

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
    """What a table shows; the cells are keys of runs in the store.

    column_tasks  whether columns have tasks of their own, and the protocol's lines therefore name none
    """

    name: str
    title: str
    published: str = ""
    sources: tuple[str, ...] = ()
    quoted: dict[str, str] = {}
    efficiency: EfficiencyRows | None = None
    recipe: str
    protocol: dict[str, Any]
    protocol_lines: tuple[str, ...]
    column_tasks: bool = False
    lr: float
    deviations: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    row_order: tuple[str, ...] = ()
    column_order: tuple[str, ...] = ()
    columns: tuple[PlannedColumn, ...]
    rows: tuple[PlannedRow, ...]
    cells: tuple[PlannedCell, ...]
    costs: tuple[PlannedCost, ...] = ()
