"""The rate falls after epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .schedule import Schedule

if TYPE_CHECKING:
    from ..protocol import Protocol


def at(protocol: Protocol, epoch: int, done: int, total: int) -> tuple[float, None]:
    """The factor of an epoch, constant within it: ``decay`` for each milestone that was passed."""
    passed = sum(protocol.recipe_epoch(epoch - 1) >= milestone for milestone in protocol.milestones)
    return protocol.decay**passed, None


SCHEDULES = (Schedule("steps", at),)
