"""Which training images the teacher answers wrongly, or not at all; the same whatever the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.seeding import generator
from ..config.recipe import Answers


@dataclass(frozen=True)
class Answered:
    """What the teacher makes of the images of a batch.

    images  (B, H, W, C) those that it looks at; None for the batch's own
    given   (B,) of which there is an answer; None for all
    """

    images: Tensor | None
    given: Tensor | None

    def part(self, rows: slice) -> Answered:
        return Answered(*(None if value is None else value[rows] for value in (self.images, self.given)))


class DrawnAnswers:
    """The training images that are answered wrongly, and those without an answer.

    Args:
        count: how many training images there are.
        answers: the shares.
        device: where ``given`` (N,) is, see :class:`Answered`.
    """

    def __init__(self, count: int, answers: Answers, device: torch.device) -> None:
        self.looked_at = _exchanged(count, answers.wrong) if answers.wrong else None
        self.given: Tensor | None = None
        if answers.missing:
            missing = torch.randperm(count, generator=generator(0, "missing answers"))[: round(answers.missing * count)]
            given = torch.ones(count, dtype=torch.bool)
            given[missing] = False
            self.given = given.to(device)

    def of(self, chosen: Tensor, images: Callable[[Tensor], Tensor]) -> Answered:
        """For the images at ``chosen`` (B,), on the CPU; ``images`` gives those at other positions."""
        given = None if self.given is None else self.given[chosen.to(self.given.device)]
        return Answered(None if self.looked_at is None else images(self.looked_at[chosen]), given)


def _exchanged(count: int, share: float) -> Tensor:
    """Positions (N,), each its own but for a share of them: these are handed round in one circle, so none stays."""
    chosen = torch.randperm(count, generator=generator(0, "wrong answers"))[: round(share * count)]
    positions = torch.arange(count)
    positions[chosen] = chosen.roll(1)
    return positions
