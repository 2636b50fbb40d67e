# ruff: noqa: RUF001
"""The printed form of a table before any mark-up: what LaTeX and Markdown have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MISSING, NOT_FOR, DASH, TIMES = "--", "n/a", "–", "×"
DAGGER, CHOICE, BEST, UNKNOWN = "†", "∗", "b", "u"


@dataclass(frozen=True)
class Cell:
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
    """A heading of a family or of a ruled-off panel (no cells), a row, or the line of published values under it."""

    kind: Literal["heading", "panel", "row", "published"]
    label: str
    cells: tuple[Cell, ...] = ()
    mark: str = ""


@dataclass(frozen=True)
class Sentence:
    """A sentence of the caption; a strong one must not be overlooked."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Sheet:
    """Blocks are separated by a rule; notes stand below the table, each with a short label or none.

    ``heads`` label the two lines of column heads, ``teachers`` and ``students`` unless a table is of something else.
    """

    name: str
    title: str
    caption: tuple[Sentence, ...]
    teachers: tuple[str, ...]
    students: tuple[str, ...]
    blocks: tuple[tuple[Line, ...], ...]
    notes: tuple[tuple[str, str], ...]
    heads: tuple[str, str] = ("Teacher", "Student")


def signed(value: float, decimals: int) -> str:
    """With its sign, and without a negative zero."""
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"


def sentence(text: str) -> str:
    """With a full stop, unless it ends in one already."""
    return text if text.endswith((".", "!", "?")) else f"{text}."
