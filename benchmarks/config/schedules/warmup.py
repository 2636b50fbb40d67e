"""The rate rises linearly over a share of all steps, then falls to zero."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...common.console import percent
from .schedule import Schedule

if TYPE_CHECKING:
    from ..protocol import Protocol


def _left(protocol: Protocol, done: int, total: int) -> tuple[float, float]:
    """The factor while the rate rises, and the share of the steps that is left once it falls."""
    rising = protocol.warmup * total
    return (done / rising if done < rising else 1.0), (total - done) / (total - rising)


def linear(protocol: Protocol, epoch: int, done: int, total: int) -> tuple[float, None]:
    rise, left = _left(protocol, done, total)
    return (rise if rise < 1 else left), None


def cosine(protocol: Protocol, epoch: int, done: int, total: int) -> tuple[float, None]:
    rise, left = _left(protocol, done, total)
    return (rise if rise < 1 else (1 - math.cos(math.pi * left)) / 2), None


def line(protocol: Protocol) -> str:
    rising = f" after a warm-up over {percent(protocol.warmup)} of the steps" if protocol.warmup else ""
    return f", {protocol.schedule} decay{rising}"


SCHEDULES = (Schedule("linear", linear, line), Schedule("cosine", cosine, line))
