"""Channel-wise distillation, Shu et al. 2021."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register
from ._levels import aligned, channels


class Settings(MethodSettings):
    weight: float = Field(10.0, ge=0, description="weight of the distillation term")
    temperature: float = Field(1.0, gt=0, description="temperature T of the softmaxes over positions")


@register
class CWD(Method[Settings]):
    """Matches where every channel of every level is active."""

    card = Card(
        name="cwd",
        version=1,
        family="feature",
        title="CWD",
        paper="shu2021cwd",
        formula=(
            "L = task + weight * sum_levels T^2 / (C B) * sum_channels KL(softmax_HW(F_t / T) || softmax_HW(F_s / T))"
        ),
        source="mmrazor configs/distill/mmdet/cwd (GFL: T 1, weight 10)",
        optimum="where the aligned student pyramid equals the teacher's up to a constant per channel",
        divergences=("the authors' repository has code for segmentation alone (weight 3, T 4 in its command)",),
        modality="detection",
    )
    needs = Needs(student=("stages",), teacher=("stages",))

    def setup(self) -> None:
        self.align = nn.ModuleList(aligned(*pair) for pair in channels("cwd", self.student, self.teacher))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        terms = [
            functional.channel_wise(align(s), t, temperature=self.settings.temperature)
            for align, s, t in zip(self.align, student.stages, teacher.stages, strict=True)
        ]
        term = self.settings.weight * torch.stack(terms).sum()
        return Losses(task={"task": batch.loss(student.logits)}, distill={"cwd": term})
