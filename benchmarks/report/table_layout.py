# ruff: noqa: RUF001
"""The printed form of a table before any mark-up: what LaTeX and Markdown have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..config.table_spec import short_name
from .model import DECIMALS, Column

MISSING, NOT_FOR, DASH, TIMES = "--", "n/a", "–", "×"
BLANK = " "
"""A head without a text; an empty one lets the head before it reach over its column."""
DAGGER, CHOICE, BEST, UNKNOWN, TIED, UNDECIDED = "†", "∗", "b", "u", "=", "≈"


@dataclass(frozen=True)
class PrintedCell:
    """`value` with its deviation and marks and an `aside` in parentheses, or a `word` where there is no value."""

    value: str = ""
    std: str = ""
    seeds: str = ""
    rank: int = 0
    marks: str = ""
    aside: str = ""
    word: str = ""


@dataclass(frozen=True)
class Line:
    """A heading of a family or of a ruled-off panel (no cells), a row, or the line of published values under it.

    ``cites`` are keys of the bibliography; a highlighted row is the reader's own.
    """

    kind: Literal["heading", "panel", "row", "published"]
    label: str
    cells: tuple[PrintedCell, ...] = ()
    mark: str = ""
    cites: tuple[str, ...] = ()
    highlight: bool = False


@dataclass(frozen=True)
class Sentence:
    """A sentence of the caption; a strong one must not be overlooked."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class TableLayout:
    """Blocks are separated by a rule; notes stand below the table, each with a short label or none.

    ``heads`` are the lines over the columns: a label and a text for each column.
    """

    name: str
    title: str
    caption: tuple[Sentence, ...]
    heads: tuple[tuple[str, tuple[str, ...]], ...]
    blocks: tuple[tuple[Line, ...], ...]
    notes: tuple[tuple[str, str], ...]

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.heads[0][1])


def several_tasks(columns: Sequence[Column]) -> bool:
    """Whether columns have to say which task they are on."""
    return len({column.task for column in columns}) > 1


def on_task(column: Column, among: Sequence[Column]) -> str:
    """The task of a column, behind its pair's name; nothing where all have the same."""
    return f" on {short_name(column.task, (other.task for other in among))}" if several_tasks(among) else ""


def pair_heads(columns: Sequence[Column]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Teacher and student of each column; where columns are of several tasks or metrics, these as well."""
    heads = [
        ("Teacher", tuple(column.teacher_title for column in columns)),
        ("Student", tuple(column.student_title for column in columns)),
    ]
    if several_tasks(columns):
        tasks = {column.task for column in columns}
        heads.append(("Task", tuple(short_name(column.task, tasks) for column in columns)))
    if several_tasks(columns) or len({column.metric for column in columns}) > 1:
        heads.append(("Metric", tuple(column.metric for column in columns)))
    return tuple(heads)


def cut(text: str, limit: int) -> str:
    """A text of at most ``limit`` characters, cut at a blank where one is near."""
    words = " ".join(text.split())
    return words if len(words) <= limit else words[: limit - 2].rsplit(" ", 1)[0] + " …"


def signed(value: float) -> str:
    """A difference of metrics with its sign, and without a negative zero."""
    return f"{round(value, DECIMALS) + 0.0:+.{DECIMALS}f}"


def sentence(text: str) -> str:
    """With a full stop, unless it ends in one already."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
