"""The rate moves from epoch to epoch, warm-up included: what timm's schedulers of these kinds give, to rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from .schedule import Schedule

if TYPE_CHECKING:
    from ..protocol import Protocol

Fall = Callable[["Protocol", float, float], float]
"""The rate (protocol, peak, epochs of the recipe gone by), where it does not rise."""


def _rises_first(fall: Fall) -> Callable[[Protocol, int, int, int], tuple[float, None]]:
    """A schedule that rises over the warm-up; what follows counts its epochs from the start of the training."""

    def at(protocol: Protocol, epoch: int, done: int, total: int) -> tuple[float, None]:
        how, peak = protocol.by_epoch, protocol.optimizer.lr
        assert how
        gone = max(0.0, protocol.recipe_epoch(epoch - 1) - how.late)
        rate = how.first + gone * (peak - how.first) / how.warmup if gone < how.warmup else fall(protocol, peak, gone)
        return rate / peak, None

    return at


def _cosine(protocol: Protocol, peak: float, gone: float) -> float:
    assert protocol.by_epoch
    last = protocol.by_epoch.last
    return last + (peak - last) * (1 + math.cos(math.pi * gone / protocol.recipe_epochs)) / 2


def _steps(protocol: Protocol, peak: float, gone: float) -> float:
    return peak * protocol.decay ** sum(gone >= milestone for milestone in protocol.milestones)


def _cosine_line(protocol: Protocol) -> str:
    assert protocol.by_epoch
    return f", half a cosine over all epochs to {protocol.by_epoch.last:g}{_line(protocol)}"


def _line(protocol: Protocol) -> str:
    how, share = protocol.by_epoch, protocol.epochs / protocol.recipe_epochs
    assert how
    rise = f", after a linear warm-up over {how.warmup * share:g} epochs from {how.first:g}" if how.warmup else ""
    return f"{rise}, set once an epoch" + (f", late by {how.late * share:g}" if how.late else "")


SCHEDULES = (
    Schedule("cosine_by_epoch", _rises_first(_cosine), _cosine_line, by_epoch=True),
    Schedule("steps_by_epoch", _rises_first(_steps), _line, by_epoch=True, decays=True),
)
