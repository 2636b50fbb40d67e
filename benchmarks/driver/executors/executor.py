"""What an executor is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Executor:
    """How cells are trained, a teacher file is measured, and a training step's cost is taken.

    name      as messages call it
    reads     what the networks of its tasks read: ``images``, ``text``, ``detection``
    train     (cells, context): computes every cell that the store does not have
    accuracy  (entry, zoo, protocol, data_root, device): the task's metric of a teacher file on the test set
    cost      (cell, protocol, data_root, device, plugin_files, prepared): figures of :class:`report.CostEntry`
    counted   whether a plan can count the arithmetic of its cells without running the executor
    """

    name: str
    reads: tuple[str, ...]
    train: Callable[..., None]
    accuracy: Callable[..., float]
    cost: Callable[..., dict[str, Any]]
    counted: bool = True
