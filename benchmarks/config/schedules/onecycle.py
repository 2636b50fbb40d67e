"""The rate rises and falls once, the momentum falls and rises: torch's OneCycleLR."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .schedule import Schedule

if TYPE_CHECKING:
    from ..protocol import Protocol


def one_cycle(done: int, total: int) -> tuple[float, float]:
    """Factor on the peak learning rate, and momentum, after ``done`` of ``total`` steps: torch's OneCycleLR.

    By cosines from 1/25 to 1 over the first 30 % and on to 1/250,000; the momentum from 0.95 to 0.85 and back.
    """
    top, end = 0.3 * total - 1, total - 1
    rising = done <= top
    way = done / top if rising and top > 0 else (done - top) / max(1, end - top)
    there = (1 - math.cos(math.pi * min(way, 1.0))) / 2
    low, momentum = (1 / 25, (0.95, 0.85)) if rising else (1 / 25e4, (0.85, 0.95))
    factor = low + (1 - low) * (there if rising else 1 - there)
    return factor, momentum[0] + (momentum[1] - momentum[0]) * there


def at(protocol: Protocol, epoch: int, done: int, total: int) -> tuple[float, float]:
    return one_cycle(done, total + protocol.epochs * protocol.plan_dropped)


def line(protocol: Protocol) -> str:
    return " at the peak of one cycle, momentum 0.95 to 0.85 and back"


SCHEDULES = (Schedule("onecycle", at, line, moves_momentum=True),)
