"""Distillation by Pearson's correlation, Cao et al. 2022; no relation of patient distillation."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register
from ._levels import aligned, channels


class Settings(MethodSettings):
    weight: float = Field(6.0, ge=0, description="weight of the distillation term")
    levels: int = Field(4, ge=1, description="how many levels are matched, from the finest on")


@register
class PKDPearson(Method[Settings]):
    """Correlates the levels of both pyramids, channel by channel, so that magnitudes do not matter."""

    card = Card(
        name="pkd_pearson",
        version=1,
        family="feature",
        title="PKD (Pearson)",
        paper="cao2022pkd",
        formula="L = task + weight * sum_levels mean_channels (1 - pearson(F_s,l, F_t,l)), over batch and positions",
        source="mmrazor configs/distill/mmdet/pkd (two-stage: weight 6, levels 1 to 4), models/losses/pkd_loss.py",
        optimum="where every channel of the aligned student pyramid is a positive multiple of the teacher's, shifted",
        modality="detection",
    )
    needs = Needs(student=("stages",), teacher=("stages",))

    def setup(self) -> None:
        widths = channels("pkd_pearson", self.student, self.teacher)[: self.settings.levels]
        self.align = nn.ModuleList(aligned(*pair) for pair in widths)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        pairs = zip(self.align, student.stages, teacher.stages, strict=False)
        terms = [functional.pearson(align(s), t) for align, s, t in pairs]
        term = self.settings.weight * torch.stack(terms).sum()
        return Losses(task={"task": batch.loss(student.logits)}, distill={"pearson": term})
