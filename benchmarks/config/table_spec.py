"""Tables: which cells they need, from tables/. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kd_methods.errors import unknown
from kd_methods.registry import FAMILIES, index
from kd_methods.strict import Strict

from ..common.places import PUBLISHED, TABLES
from ..common.yaml_files import Misplaced, Shelf, load, merged
from .protocol import PROTOCOLS, Protocol
from .recipe import Optimizer

Init = Literal["", "first", "last", "spread", "heads"]
"""How a column's or row's students may start."""

Name = Annotated[str, Field(min_length=1)]

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
"""What is also a part of a folder's or file's name, here and where archives are unpacked."""

MEAN = "mean"
"""The task of a column that holds means over a pair's tasks."""

MAX_SEED = 2**32 - 1
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


def _each_once(what: str, names: Iterable[Any]) -> None:
    """Raise Misplaced where one stands twice: in a table, the second would take the first one's place."""
    seen: list[Any] = []
    for i, name in enumerate(names):
        if name in seen:
            raise Misplaced(f"the {what} '{name}' is there twice (first as number {seen.index(name) + 1})", i)
        seen.append(name)


class Pair(Strict):
    """A column: teacher and student."""

    id: Name = Field(description="its name on the command line, and in the published values")
    teacher: Name = Field(description="network")
    student: Name = Field(description="network")
    task: str = Field(default="", description="the column's own, in place of the protocol's")
    metric: str = Field(default="", description="the column's own, in place of the table's or the task's")
    init: Init = Field(
        default="",
        description="start from the teacher's first, last or equally spread layers, or a detector's neck and heads",
    )


class TaskColumn(Strict):
    """A task that every pair of a table has a column for, and the metric to show."""

    task: Name = Field(description="its name")
    metric: str = Field(default="", description="to show, in place of the task's own")


class Row(Strict):
    """A method as a row."""

    id: Name = Field(
        description="its name on the command line; another one than the method's where a table shows that twice"
    )
    method: Name = Field(description="its name, modified or combined: dkd, dkd@ls, crd+kd")
    title: str = Field(default="", description="as tables print it; by default the method's")
    settings: dict[str, Any] = Field(
        default={}, description="of the method, where they differ from defaults and from those published for the pair"
    )
    by_pair: dict[str, dict[str, Any]] = Field(
        default={}, description="further settings for single columns, by the pair's id"
    )
    our_choice: bool = Field(
        default=False, description="nobody published these settings: they are marked as our choice"
    )
    optimizer: dict[str, Any] = Field(
        default={}, description="settings of the protocol's optimiser that this row changes"
    )
    published: str = Field(
        default="", description="row of the published values that it repeats, where that is not the method's own"
    )
    student: str = Field(default="", description="network to train in place of the column's")
    init: Init = Field(default="", description="as of a pair, for this row alone")

    def settings_on(self, column: str) -> dict[str, Any]:
        """The row's own settings in a column, by the pair's id alone or with a task behind it."""
        return merged(self.settings, self.by_pair.get(column, self.by_pair.get(without_task(column), {})))

    @field_validator("optimizer")
    @classmethod
    def _optimizer(cls, value: dict[str, Any]) -> dict[str, Any]:
        if other := set(value) - (set(Optimizer.model_fields) - {"lr"}):
            raise ValueError(f"{', '.join(sorted(other))} is no setting of a row's optimiser")
        return value


class Matrix(Strict):
    """Rows and columns as they are written in YAML; what a table and its presets have in common."""

    @field_validator("pairs", mode="before", check_fields=False)
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        return _read_pairs(value)

    @field_validator("methods", mode="before", check_fields=False)
    @classmethod
    def _methods(cls, value: Any) -> Any:
        return _read_rows(value)

    @field_validator("tasks", mode="before", check_fields=False)
    @classmethod
    def _tasks(cls, value: Any) -> Any:
        """Tasks may be written by name alone."""
        return tuple({"task": t} if isinstance(t, str) else t for t in value) if isinstance(value, list) else value

    @field_validator("pairs", check_fields=False)
    @classmethod
    def _pairs_once(cls, value: Any) -> Any:
        _each_once("pair", (pair.id for pair in value or ()))
        return value

    @field_validator("tasks", check_fields=False)
    @classmethod
    def _tasks_once(cls, value: Any) -> Any:
        columns = labels(value or ())
        _each_once("column", columns)
        if MEAN in columns:
            text = f"'{MEAN}' is the column of means; give the task's folder another name"
            raise Misplaced(text, columns.index(MEAN))
        return value

    @field_validator("methods", check_fields=False)
    @classmethod
    def _all_methods(cls, value: Any) -> Any:
        _each_once("row", (row.id for row in value or ()))
        return value and _expanded(value)


class Preset(Matrix):
    """A named way to run a table. What it does not set is the table's; a row's id alone is that row of the table."""

    protocol: Name = Field(description="name, or a file beside the table")
    seeds: tuple[Seed, ...] = Field(min_length=1, description="of its cells")
    title: str = Field(default="", description="in place of the table's")
    pairs: tuple[Pair, ...] | None = Field(default=None, min_length=1, description="in place of the table's")
    methods: tuple[Row, ...] | None = Field(
        default=None, min_length=1, description="in place of the table's; a row's id alone is that row of the table"
    )
    task: str | None = Field(default=None, description="in place of the protocol's")
    tasks: tuple[TaskColumn, ...] | None = Field(default=None, description="in place of the table's")
    notes: tuple[str, ...] = Field(default=(), description="printed under the table")

    @field_validator("seeds")
    @classmethod
    def _seeds_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        _each_once("seed", value)
        return value


METRICS = {
    "top1": "Top-1 accuracy (%)",
    "top5": "Top-5 accuracy (%)",
    "accuracy": "Accuracy (%)",
    "accuracy_mm": "Accuracy (%), mismatched",
    "mcc": "Matthews correlation (x100)",
    "f1": "F1 (%)",
    "pearson": "Pearson correlation (x100)",
    "spearman": "Spearman correlation (x100)",
    "mAP": "AP of boxes (%)",
    "AP50": "AP at IoU 0.5 (%)",
    "AP75": "AP at IoU 0.75 (%)",
    "APs": "AP of small objects (%)",
    "APm": "AP of medium objects (%)",
    "APl": "AP of large objects (%)",
}
"""How tables call a metric."""


class Efficiency(Strict):
    """Which row's average relative improvement (ARI) is printed, and against which rows."""

    row: str = Field(description="the one that is compared")
    against: tuple[str, ...] = Field(description="rows that it is compared with")


class TableSpec(Matrix):
    """One YAML of tables/: rows x columns of cells, and what is published for each."""

    name: FileName = Field(description="its name, and that of its files")
    title: str = Field(description="printed over the table")
    metric: str = Field(default="", description="shown unless a column names its own; by default the task's")
    extra: Literal["", "text", "detection"] = Field(default="", description="optional part of the suite that it needs")
    pairs: tuple[Pair, ...] = Field(min_length=1, description="columns: written teacher-student, or as below")
    tasks: tuple[TaskColumn, ...] = Field(
        default=(), description="every pair has a column for each, and one for their mean; written by name, or as below"
    )
    methods: tuple[Row, ...] = Field(
        min_length=1, description="rows: by name (*: all that share the field's recipe), or as below"
    )
    published: str = Field(default="", description="file of tables/published/ with the literature's values")
    quoted: dict[str, str] = Field(
        default={}, description="published rows of methods that the suite does not have, with their titles"
    )
    probe: str = Field(default="", description="file of tables/published/ with values of linear probes of its students")
    similarity: bool = Field(default=False, description="student and teacher are compared after every epoch")
    sources: tuple[str, ...] = Field(
        default=(), description="parts of source names, whose values are preferred in this order"
    )
    efficiency: Efficiency | None = Field(
        default=None,
        description="a second table: epochs to the plain student's best, and how far one row is ahead of others (ARI)",
    )
    presets: dict[FileName, Preset] = Field(min_length=1, description="ways to run it, by name; paper is the usual one")

    @field_validator("published", "probe")
    @classmethod
    def _exists(cls, value: str) -> str:
        known = [path.name for path in PUBLISHED.glob("*.csv")] if value else []
        if value and value not in known:
            raise ValueError(unknown("file of tables/published", value, known))
        return value

    @model_validator(mode="after")
    def _known_rows(self) -> TableSpec:
        for row in (*self.methods, *(row for preset in self.presets.values() for row in preset.methods or ())):
            if row.id in self.quoted:
                raise Misplaced(f"the row '{row.id}' is run, and cannot be quoted as well", "quoted", row.id)
        places: list[tuple[tuple[str, ...], Sequence[Row]]] = [(("methods",), self.methods)]
        places += [(("presets", name, "methods"), preset.methods or ()) for name, preset in self.presets.items()]
        shown = (self.pairs, *(preset.pairs or () for preset in self.presets.values()))
        pairs = {pair.id for each in shown for pair in each}
        for place, rows in places:
            if absent := {pair for row in rows for pair in row.by_pair} - pairs:
                raise Misplaced(f"no pair of the table: {', '.join(sorted(absent))}", *place)
        if self.efficiency:
            known = {row.id for row in self.methods}
            if absent := {self.efficiency.row, *self.efficiency.against} - known:
                raise Misplaced(f"no row of the table: {', '.join(sorted(absent))}", "efficiency")
        return self

    @model_validator(mode="after")
    def _one_task_in_a_column(self) -> TableSpec:
        for name, preset in self.presets.items():
            tasks = self.tasks if preset.tasks is None else preset.tasks
            if twice := [pair.id for pair in preset.pairs or self.pairs if tasks and pair.task]:
                place = ("presets", name, "pairs") if preset.pairs else ("pairs",)
                text = f"{', '.join(twice)}: a pair has no task of its own where the table names tasks"
                raise Misplaced(text, *place)
        return self

    def preset(self, name: str) -> Preset:
        """A preset by name, completed with the table's own pairs and methods.

        Raises:
            UserError: no such preset.
        """
        if name not in self.presets:
            raise unknown("preset", name, self.presets)
        preset = self.presets[name]
        tasks = self.tasks if preset.tasks is None else preset.tasks
        known = {row.id: row for row in self.methods}
        rows = preset.methods or ()
        named = (known.get(row.id, row) if row == Row(id=row.id, method=row.id) else row for row in rows)
        update = {"pairs": columns(preset.pairs or self.pairs, tasks), "methods": tuple(named) or self.methods}
        return preset.model_copy(update={**update, "tasks": tasks})

    def heading(self, preset: str) -> str:
        """The table under a preset, in one line."""
        return f"{self.name}: {self.preset(preset).title or self.title}  (preset {preset})"


def columns(pairs: tuple[Pair, ...], tasks: tuple[TaskColumn, ...]) -> tuple[Pair, ...]:
    """A column of each pair on each task; the pairs as they are where no tasks are named."""
    if not tasks:
        return pairs
    return tuple(
        pair.model_copy(update={"id": f"{pair.id}:{label}", "task": t.task, "metric": t.metric or pair.metric})
        for pair in pairs
        for t, label in zip(tasks, labels(tasks), strict=True)
    )


def without_task(column: str) -> str:
    """The pair of a column ``PAIR:TASK``; of a column that was not made of both its own name."""
    return column.rpartition(":")[0] or column


def labels(tasks: Sequence[TaskColumn]) -> list[str]:
    """What tells the columns of a pair from each other."""
    names = {column.task for column in tasks}
    return [short_name(t.task, names) + (f".{t.metric}" if t.metric else "") for t in tasks]


def short_name(task: str, among: Iterable[str]) -> str:
    """The last word of a task's name or folder; where others have the same, as many words as tell them apart."""
    words, *others = (_words(name) for name in (task, *(set(among) - {task})))
    count = next((n for n in range(1, len(words)) if all(other[-n:] != words[-n:] for other in others)), len(words))
    return "/".join(words[-count:])


def _words(task: str) -> list[str]:
    """Of a name, or of the whole path of a user's folder, which may be named from where one stands."""
    _, is_place, name = task.rpartition(":")
    return list(Path(name).resolve().parts) if is_place else name.split("/")


def _read_pairs(value: Any) -> Any:
    """Pairs may be written ``teacher-student``."""
    if not isinstance(value, list):
        return value
    read = []
    for item in value:
        if isinstance(item, str):
            teacher, dash, student = item.partition("-")
            if not dash:
                raise ValueError(f"'{item}' is not of the form teacher-student")
            item = {"id": item, "teacher": teacher, "student": student}
        read.append(item)
    return tuple(read)


def _read_rows(value: Any) -> Any:
    """Methods may be written by name alone."""
    if not isinstance(value, list):
        return value
    return tuple({"id": item, "method": item} if isinstance(item, str) else item for item in value)


def _expanded(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """``"*"`` is every method for images that shares the field's recipe, without variants such as ``cc.paper``.

    Families stand in the registry's order, methods of one family in that of their papers' years.
    """
    named = {row.id for row in rows}
    if "*" not in named:  # the registry's index is read where it is needed alone
        return rows
    others = [e for e in index().values() if not e.recipe and "." not in e.name and e.modality in ("images", "any")]
    others.sort(key=lambda entry: (FAMILIES.index(entry.family), entry.year))
    every = tuple(Row(id=entry.name, method=entry.name) for entry in others if entry.name not in named)
    return tuple(one for row in rows for one in (every if row.id == "*" else (row,)))


TABLE_FILES = Shelf("table", TABLES)


def table_names() -> list[str]:
    """The tables that ship with the suite."""
    return TABLE_FILES.names()


def load_table(name: str) -> TableSpec:
    """A table by name, or by the path of a YAML file of one's own.

    Raises:
        UserError: no such table, or its YAML is malformed (file and line are named).
    """
    table, path = load(TableSpec, name, TABLE_FILES, _extended)
    for key, preset in table.presets.items():
        protocol = PROTOCOLS.named(preset.protocol, path, "presets", key, "protocol")
        table.presets[key] = preset.model_copy(update={"protocol": protocol})
    return table


def _extended(base: dict[str, Any], extending: dict[str, Any]) -> dict[str, Any]:
    """A table that has a title does not take over those of the presets that it extends: they tell of another table."""
    if "title" in extending:
        presets = {name: {**preset, "title": ""} for name, preset in base["presets"].items()}
        base = {**base, "presets": presets}
    return merged(base, extending)


def table_folder_of(table: str, preset: str, usual: Protocol, protocol: Protocol, uniform: bool = False) -> str:
    """Name of the folder of a table: runs of another length, split or choice of settings are other tables."""
    length = f"-epochs{protocol.epochs}" if protocol.epochs != usual.epochs else ""
    split = f"-holdout{protocol.holdout}" if protocol.holdout != usual.holdout else ""
    computed = f"-{protocol.precision}" if protocol.precision != usual.precision else ""
    computed += f"-accumulate{protocol.accumulate}" if protocol.accumulate != usual.accumulate else ""
    computed += f"-processes{protocol.processes}" if protocol.processes != usual.processes else ""
    computed += "-syncbn" if protocol.sync_bn and not usual.sync_bn else ""
    computed += "-compile" if protocol.compile and not usual.compile else ""
    return f"{table}-{preset}{length}{split}{computed}{'-uniform' if uniform else ''}"
