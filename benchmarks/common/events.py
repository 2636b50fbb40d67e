"""What is reported of cells while they train, by whoever trains them to whoever follows. Imports no torch.

All of it can be pickled, and so goes from process to process as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Required

from pydantic import ConfigDict
from typing_extensions import TypedDict


class EpochRecord(TypedDict, total=False):
    """What is recorded of an epoch: an entry of metrics.json, which may have more in it.

    phase    of a method's first phases the name; empty in the training proper, to which ``metrics`` and ``probes``,
             the auxiliary logits' metrics, belong
    losses   each term's mean
    watched  further scalars of the method, as they are at the epoch's end; absent where it has none
    seconds  of the steps
    """

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    epoch: Required[int]
    phase: str
    lr: float
    metrics: Required[dict[str, float]]
    probes: dict[str, dict[str, float]]
    losses: dict[str, float]
    watched: dict[str, float]
    similarity: dict[str, list[float]]
    seconds: float


@dataclass(frozen=True)
class Stepped:
    """A cell has made ``steps`` more; ``position`` is the epoch and the step that come next.

    The first event of a cell is about one step: there one learns where it begins.
    """

    key: str
    label: str
    position: tuple[int, int]
    steps: int = 1


@dataclass(frozen=True)
class EpochEnded:
    """A cell has ended an epoch, and recorded it."""

    key: str
    label: str
    record: EpochRecord


@dataclass(frozen=True)
class CellEnded:
    """A cell is ``done``, with the ``last`` epoch's metrics, or it is ``diverged`` or ``failed``, and how."""

    key: str
    label: str
    state: str
    message: str = ""
    last: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A cell is not trained after all; the line says which, and why."""

    line: str


@dataclass(frozen=True)
class Said:
    """A line for a person."""

    line: str


Event = Stepped | EpochEnded | CellEnded | LeftOut | Said

Watcher = Callable[[Event], None]
"""Follows what is trained."""
