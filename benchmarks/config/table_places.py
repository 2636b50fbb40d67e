"""Where in a table's file its rows and columns are written, for messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kd_methods.errors import UserError

from ..common.yaml_files import read_yaml, where
from .table_spec import TABLE_FILES


@contextmanager
def written_in(table: str, preset: str, what: str, name: str, *below: str) -> Iterator[None]:
    """Put file and line before what is wrong with a row (``what`` is methods), a column (pairs) or its task (tasks).

    ``below`` is the key of it that is looked at. What no file names, but the command line, has no place.
    """
    try:
        yield
    except UserError as error:
        place = _place(TABLE_FILES.file(table), preset, what, name)
        if not place:
            raise
        file, location = place
        raise type(error)(f"{where(file, *location, *below)}: {error}") from None


def _place(file: Path, preset: str, what: str, name: str) -> tuple[Path, tuple[str | int, ...]] | None:
    """The file that has an entry, and where; one with keys of its own rather than its name alone."""
    raw = read_yaml(file)
    named = None
    for location in (("presets", preset, what), (what,)):
        for i, entry in enumerate(_below(raw, location)):
            if isinstance(entry, dict) and entry.get("id", entry.get("task")) == name:
                return file, (*location, i)
            if entry == name and named is None:
                named = file, (*location, i)
    base = _place(TABLE_FILES.path(str(raw["extends"])), preset, what, name) if "extends" in raw else None
    return named or base


def _below(raw: Any, location: tuple[str, ...]) -> list[Any]:
    for key in location:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw if isinstance(raw, list) else []
