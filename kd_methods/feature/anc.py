"""Adversarial network compression, Belagiannis et al. 2018."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn
from torch.func import functional_call

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(0.0, ge=0, description="weight of the task loss; the paper trains without labels")
    logits: float = Field(1.0, ge=0, description="weight of the distance between logits")
    adversarial: float = Field(1.0, ge=0, description="weight of the contest of student and discriminator")
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (128, 256, 128), min_length=1, description="widths of the discriminator's layers"
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout on the features that are to deceive it")


@register
class ANC(Method[Settings]):
    """A discriminator learns to tell the student's pooled features from the teacher's, the student to deceive it."""

    card = Card(
        name="anc",
        version=1,
        family="feature",
        title="ANC",
        paper="belagiannis2018anc",
        formula=(
            "L = ce * CE(z_s, y) + logits * mean (z_s - z_t)^2 + adversarial * {BCE(D(drop(P f_s)), 1)"
            " + [BCE(D(f_t), 1) + BCE(D(P f_s), 0) + BCE(D(drop(P f_s)), 1)]};"
            " what is in brackets trains the discriminator D alone, all else all but D; P is linear"
        ),
        source="arXiv 1803.10750 for the idea; the terms as in a public re-implementation of it (an ANCTrainer)",
        optimum="not identity: student and discriminator work against each other",
        order="features are dropped image by image",
        divergences=(
            "the paper's text was not at hand: weights, widths and dropout are our choice",
            "student and discriminator are updated at once by one optimiser, not in turns by two",
            "P is there where the widths are equal, too: the two networks' features are not in one order",
            "the term of the re-implementation that lets the discriminator take dropped-out student features for the"
            " teacher's (a regularisation against too strong a discriminator) has weight 1",
        ),
        our_choice=("logits", "adversarial", "widths", "dropout"),
        batch="global",
    )
    needs = Needs(student=("pooled",), teacher=("pooled", "logits"))

    def setup(self) -> None:
        d_s, d_t = self.student.shapes("pooled")[0][0], self.teacher.shapes("pooled")[0][0]
        self.map = nn.Linear(d_s, d_t, bias=False)
        layers: list[nn.Module] = []
        for c_in, c_out in zip((d_t, *self.settings.widths), self.settings.widths, strict=False):
            layers += [nn.Linear(c_in, c_out), nn.ReLU()]
        self.discriminator = nn.Sequential(*layers, nn.Linear(self.settings.widths[-1], 1))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        mapped = self.map(student.pooled)
        dropped = F.dropout(mapped, config.dropout)
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        deceived = functional_call(self.discriminator, fixed, (dropped,))
        judged = [self.discriminator(x.detach()) for x in (teacher.pooled, mapped, dropped)]
        recognised = [functional.told_apart(z, real) for z, real in zip(judged, (True, False, True), strict=True)]
        contest = torch.stack([functional.told_apart(deceived, True), *recognised]).sum()
        return Losses(
            task={"task": config.ce * batch.loss(student.logits)},
            distill={
                "logits": config.logits * functional.hint(student.logits, teacher.logits),
                "adversarial": config.adversarial * contest,
            },
        )
