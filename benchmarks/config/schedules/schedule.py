"""What a learning-rate schedule is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..protocol import Protocol


@dataclass(frozen=True)
class Schedule:
    """How the learning rate moves.

    name  as protocols call it
    at    (protocol, epoch from 1, steps done, all steps) to the factor on the rate, and the momentum where it moves
    line  what a caption says of it, beginning with a comma or a space
    by_epoch  whether it reads the protocol's ``by_epoch``
    decays    whether it reads ``milestones`` and ``decay``, which a caption says then
    moves_momentum  whether it gives a momentum, instead of the optimiser's
    """

    name: str
    at: Callable[[Protocol, int, int, int], tuple[float, float | None]]
    line: Callable[[Protocol], str] = lambda protocol: ""
    by_epoch: bool = False
    decays: bool = False
    moves_momentum: bool = False
