# ruff: noqa: RUF001
"""A row under other settings is a row of its own: what it is called, and how its name is read. Imports no torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from .table_spec import Row

SYMBOLS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "eps": "ε", "lambda_": "λ", "tau": "τ", "temperature": "T",
}  # fmt: skip
"""How titles write a setting that papers write with a symbol; others stand under their own names."""


class ChangedRow(Row):
    """A row of a table with some settings changed: ``changes`` of the row ``base``, flat (``method.key``)."""

    base: str
    changes: dict[str, Any]


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of a combination's methods as ``method.key``."""
    flattened: dict[str, Any] = {}
    for key, value in settings.items():
        inner = flat(value) if isinstance(value, dict) else None
        flattened |= {key: value} if inner is None else {f"{key}.{name}": x for name, x in inner.items()}
    return flattened


def changed_id(row: str, changes: Mapping[str, Any]) -> str:
    """``dkd:beta=3``, the same for the same settings, however they were written."""
    return ":".join([row, *(f"{key}={_text(value)}" for key, value in sorted(changes.items()))])


def changed_title(title: str, changes: Mapping[str, Any]) -> str:
    """``DKD (β = 3)``."""
    return f"{title} ({', '.join(f'{_symbol(key)} = {_text(value)}' for key, value in sorted(changes.items()))})"


def distinct_titles(titles: Mapping[str, str]) -> dict[str, str]:
    """Titles by row; behind one that several rows share stands the row's id."""
    shared = Counter(titles.values())
    return {row: title if shared[title] == 1 else f"{title} ({row})" for row, title in titles.items()}


def base_and_changes(name: str) -> tuple[str, tuple[str, ...]]:
    """A row's id as the id of the row that it changes and the changes, each as ``key=value``; none in another id."""
    base, *changes = re.split(r":(?=[\w.+@-]+=)", name)
    return base, tuple(changes)


def _symbol(key: str) -> str:
    prefix, dot, name = key.rpartition(".")
    return f"{prefix}{dot}{SYMBOLS.get(name, name)}"


def _text(value: Any) -> str:
    """As YAML reads it back; whole numbers without a point."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
