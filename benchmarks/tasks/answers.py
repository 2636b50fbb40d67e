"""Which training images the teacher answers wrongly, with noise, or not at all; the same whatever the seed."""

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
    noise   (B, K) what is added to the logits, in units of each row's standard deviation; None for nothing
    """

    images: Tensor | None
    given: Tensor | None
    noise: Tensor | None

    def part(self, rows: slice) -> Answered:
        values = (self.images, self.given, self.noise)
        return Answered(*(None if value is None else value[rows] for value in values))


class DrawnAnswers:
    """The training images that are answered wrongly, those that are answered with noise, and those without an answer.

    Args:
        count: how many training images there are.
        num_classes: how many logits an answer has.
        answers: the shares.
        device: where ``given`` (N,) and ``noise`` (N, K) are, see :class:`Answered`.
    """

    def __init__(self, count: int, num_classes: int, answers: Answers, device: torch.device) -> None:
        self.looked_at = _exchanged(count, answers.wrong) if answers.wrong else None
        self.given: Tensor | None = None
        if answers.missing:
            missing = torch.randperm(count, generator=generator(0, "missing answers"))[: round(answers.missing * count)]
            given = torch.ones(count, dtype=torch.bool)
            given[missing] = False
            self.given = given.to(device)
        self.noise = _noise(count, num_classes, answers).to(device) if answers.corrupted else None

    def of(self, chosen: Tensor, images: Callable[[Tensor], Tensor]) -> Answered:
        """For the images at ``chosen`` (B,), on the CPU; ``images`` gives those at other positions."""
        given, noise = (None if x is None else x[chosen.to(x.device)] for x in (self.given, self.noise))
        return Answered(None if self.looked_at is None else images(self.looked_at[chosen]), given, noise)


def _exchanged(count: int, share: float) -> Tensor:
    """Positions (N,), each its own but for a share of them: these are handed round in one circle, so none stays."""
    chosen = torch.randperm(count, generator=generator(0, "wrong answers"))[: round(share * count)]
    positions = torch.arange(count)
    positions[chosen] = chosen.roll(1)
    return positions


def _noise(count: int, num_classes: int, answers: Answers) -> Tensor:
    """Normal numbers (N, K) for a share of the images, zeros for the others."""
    draws = generator(0, "corrupted answers")
    chosen = torch.randperm(count, generator=draws)[: round(answers.corrupted * count)]
    noise = torch.zeros(count, num_classes)
    noise[chosen] = answers.noise * torch.randn(len(chosen), num_classes, generator=draws)
    return noise
