"""FitNet's hints on every level of the pyramid, as benchmarks of detection run them."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register
from ._levels import channels


class Settings(MethodSettings):
    beta: float = Field(1.0, ge=0, description="weight of the hints")


@register
class PyramidFitNet(Method[Settings]):
    """Regresses every level of the teacher's pyramid from the student's."""

    card = Card(
        name="fitnet.fpn",
        version=1,
        family="feature",
        title="FitNet",
        paper="romero2015fitnets",
        formula="L = task + beta * mean_levels MSE(conv1x1_l(F_s,l), F_t,l)",
        source="no configuration is public for the tables that report it; form and weight are ours",
        optimum="where the regressed student pyramid equals the teacher's",
        divergences=("the paper has one hint in a middle layer, and trains up to it first",),
        our_choice=("beta",),
        modality="detection",
    )
    needs = Needs(student=("stages",), teacher=("stages",))

    def setup(self) -> None:
        self.regress = nn.ModuleList(nn.Conv2d(s, t, 1) for s, t in channels("fitnet.fpn", self.student, self.teacher))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        hints = [
            functional.hint(regress(s), t)
            for regress, s, t in zip(self.regress, student.stages, teacher.stages, strict=True)
        ]
        term = self.settings.beta * torch.stack(hints).mean()
        return Losses(task={"task": batch.loss(student.logits)}, distill={"hint": term})
