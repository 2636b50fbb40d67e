"""The rate falls after epochs, and may rise over the first steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...common.console import percent
from .schedule import Schedule

if TYPE_CHECKING:
    from ..protocol import Protocol


def at(protocol: Protocol, epoch: int, done: int, total: int) -> tuple[float, None]:
    """The factor of an epoch, constant within it: ``decay`` for each milestone that was passed.

    Over the share ``warmup`` of all steps, where there is one, it rises linearly first.
    """
    passed = sum(protocol.recipe_epoch(epoch - 1) >= milestone for milestone in protocol.milestones)
    rising = protocol.warmup * total
    return protocol.decay**passed * (done / rising if done < rising else 1.0), None


def line(protocol: Protocol) -> str:
    return f", after a linear warm-up over {percent(protocol.warmup)} of the steps" if protocol.warmup else ""


SCHEDULES = (Schedule("steps", at, line, decays=True),)
