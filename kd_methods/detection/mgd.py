"""Masked generative distillation on feature pyramids, Yang et al. 2022."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register
from ._levels import aligned, channels


class Settings(MethodSettings):
    alpha: float = Field(5e-7, ge=0, description="weight of the generation term")
    mask: float = Field(0.45, gt=0, lt=1, description="share lambda of the pixels that is dropped")


@register
class PyramidMGD(Method[Settings]):
    """Generates the teacher's pyramid from the student's with some pixels masked."""

    card = Card(
        name="mgd.fpn",
        version=2,
        family="feature",
        title="MGD",
        paper="yang2022mgd",
        formula="L = task + alpha / B * sum_levels sum (G_l(mask * D_l(F_s,l)) - F_t,l)^2, mask drops pixels",
        source="authors' MGD det/mmdet/distillation/losses/mgd.py (two-stage: alpha 5e-7, lambda 0.45)",
        optimum="where the generated pyramid equals the teacher's",
        divergences=(
            "the defaults are those of two-stage detectors; for one-stage ones the authors have alpha 2e-5, lambda 0.65"
            " (tables/published/settings.yaml)",
            "of a two-stage detector the four levels are matched that its region heads read, as the authors do",
            "in the authors' published numbers of one-stage detectors the student begins with the teacher's neck and"
            " head (row setting init); their gradients are clipped at norm 35",
        ),
        order="each image draws masks of its own",
        modality="detection",
    )
    needs = Needs(student=("stages",), teacher=("stages",))

    def setup(self) -> None:
        widths = channels("mgd.fpn", self.student, self.teacher, convolved=True)
        self.align = nn.ModuleList(aligned(*pair) for pair in widths)
        self.generate = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1)) for _, c in widths
        )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        terms = []
        for align, generate, s, t in zip(self.align, self.generate, student.stages, teacher.stages, strict=False):
            mask = torch.rand(len(s), 1, *s.shape[2:], device=s.device) >= self.settings.mask
            generated = generate(align(s) * mask)
            terms.append(functional.hint(generated, t) * (t.numel() / len(t)))
        total = self.settings.alpha * torch.stack(terms).sum()
        return Losses(task={"task": batch.loss(student.logits)}, distill={"generation": total})
