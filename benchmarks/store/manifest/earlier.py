"""Manifests of earlier versions, with the fields as they are now. Imports no torch."""

from __future__ import annotations

from typing import Any

from ...config.changed_rows import flat

SAW_HOLDOUT = "were trained on the held-out images too"


def upgraded(raw: Any) -> Any:
    """A manifest as it was read; what is malformed stays so, for the shapes to say."""
    if not isinstance(raw, dict) or not all(isinstance(raw.get(name), list) for name in ("columns", "rows", "cells")):
        return raw
    # Before there were tables of several tasks, all columns shared theirs.
    shared = {name: raw[name] for name in ("metric", "metric_title", "data") if name in raw}
    columns = [{**shared, **column} if isinstance(column, dict) else column for column in raw["columns"]]
    notes = raw.get("notes")
    if isinstance(notes, list):  # a sentence that is made of the columns now
        caution = [note for note in notes if isinstance(note, str) and note.endswith(SAW_HOLDOUT)]
        columns = [_cautioned(column, caution) for column in columns]
        raw = {**raw, "notes": [note for note in notes if note not in caution]}
    rows = [{**row, "our_choice": _choices(row, raw)} if isinstance(row, dict) else row for row in raw["rows"]]
    return {**raw, "efficiency": raw.get("efficiency") or None, "columns": columns, "rows": rows}


def _cautioned(column: Any, caution: list[str]) -> Any:
    teacher = column.get("teacher") if isinstance(column, dict) else None
    if not isinstance(teacher, dict) or not teacher.get("entry") or not any(teacher["entry"] in one for one in caution):
        return column
    return {**column, "teacher": {**teacher, "saw_holdout": True}}


def _choices(row: dict[str, Any], raw: dict[str, Any]) -> Any:
    """A row's choices, which were lines such as ``beta 2.0`` and ``alpha 0.5 (resnet56-resnet20)``."""
    named = [column.get("key") for column in raw["columns"] if isinstance(column, dict)]
    cells = [flat(cell["settings"]) for cell in raw["cells"] if _of(row, cell)]
    chosen = row.get("our_choice") or []
    if not isinstance(chosen, list):
        return chosen
    return [_choice(line, named, cells) if isinstance(line, str) else line for line in chosen]


def _of(row: dict[str, Any], cell: Any) -> bool:
    return isinstance(cell, dict) and isinstance(cell.get("settings"), dict) and cell.get("row") == row.get("key")


def _choice(line: str, named: list[Any], cells: list[dict[str, Any]]) -> dict[str, Any]:
    key, _, rest = line.partition(" ")
    text, _, inside = rest.removesuffix(")").rpartition(" (")
    columns = inside.split(", ")
    if not (rest.endswith(")") and any(column in named for column in columns)):
        text, columns = rest, []
    # The value is among the settings of the row's cells, unless none of these is shown any more.
    return {"key": key, "value": next((s[key] for s in cells if str(s.get(key)) == text), text), "columns": columns}
