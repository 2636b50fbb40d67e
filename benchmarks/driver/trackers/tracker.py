"""What a tracker is, and what is passed on to it. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ...store.cell import Cell


class Tracker:
    """Takes what one cell reports while it trains to where a person looks at it; one is made for each cell.

    All is called in the process of the command, whichever process trains the cell. That something raises is no failure
    of the cell: it is said, and the command goes on without trackers of this kind.

    Args:
        cell: what is trained; a run that goes on has the same key, and only its new epochs are passed on.
        folder: for what the tracker writes, shared by all cells; it need not exist yet.

    ``essential``: what it raises is no trouble of its own, but ends the run, with all saved, and is raised there.
    """

    name: ClassVar[str]
    essential: ClassVar[bool] = False

    def __init__(self, cell: Cell, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def check(cls) -> None:
        """Called once before anything is trained.

        Raises:
            UserError: the tracker cannot be used here, such as for a library that is missing.
        """

    def epoch(self, record: Mapping[str, Any]) -> None:
        """The cell has ended an epoch; ``record`` is what metrics.json has of it (:func:`scalars`)."""

    def end(self, state: str) -> None:
        """The cell is done, diverged, failed or interrupted."""


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in the record of an epoch, under names such as ``metrics/top1``, ``losses/kd`` and ``lr``."""
    numbers = {name: value for name, value in _flat(record) if isinstance(value, int | float)}
    numbers.pop("epoch")  # it is the step at which the others stand
    return numbers


def settings(cell: Cell) -> dict[str, str | float]:
    """All that the cell's result depends on, under names such as ``method/settings/beta``."""
    settings: dict[str, str | float] = {}
    for name, value in _flat(cell.identity()):
        if value is not None:
            settings[name] = value if isinstance(value, str | int | float) else json.dumps(value)
    return settings


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", inner
