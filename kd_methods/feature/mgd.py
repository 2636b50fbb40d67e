"""Masked generative distillation for classification, Yang et al. 2022."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..errors import UserError
from ..functional.feature import same_size
from ..registry import register


class Settings(MethodSettings):
    alpha: float = Field(7e-5, ge=0, description="weight of the generation term")
    mask: float = Field(0.15, gt=0, lt=1, description="share lambda of the map that is dropped")
    dropped: Literal["channels", "pixels"] = Field("channels", description="what the mask drops")


@register
class MGD(Method[Settings]):
    """Generates the teacher's last map from the student's with some channels masked."""

    card = Card(
        name="mgd",
        version=1,
        family="feature",
        title="MGD",
        paper="yang2022mgd",
        formula="L = CE(z_s, y) + alpha / B * sum (G(mask * D(F_s)) - F_t)^2, mask drops channels",
        source="authors' cls_KD mmcls/models/dis_losses/mgd.py (alpha 7e-5, lambda 0.15)",
        optimum="where the generated map equals the teacher's",
        order="each row draws a mask of its own",
        divergences=(
            "for classification the mask drops channels, for detection pixels; the default is the former",
            "maps of different sizes are average-pooled to the smaller one (the authors' code refuses them)",
            "the default weight is ImageNet's, and the sum grows with the map; the authors' CIFAR-100 configuration"
            " (cls_KD, ResNet34 to ResNet18) has 1.2e-3",
        ),
        batch="global",
    )
    needs = Needs(student=("last_map",), teacher=("last_map",))

    def setup(self) -> None:
        shapes = self.student.shapes("last_map")[0], self.teacher.shapes("last_map")[0]
        if any(len(shape) != 3 for shape in shapes):
            raise UserError("method 'mgd' needs last maps (C, H, W); use another method for this pair")
        c_s, c_t = shapes[0][0], shapes[1][0]
        self.align = nn.Identity() if c_s == c_t else nn.Conv2d(c_s, c_t, 1)
        self.generator = nn.Sequential(nn.Conv2d(c_t, c_t, 3, padding=1), nn.ReLU(), nn.Conv2d(c_t, c_t, 3, padding=1))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        s, t = same_size(student.last_map, teacher.last_map)
        s = self.align(s)
        shape = (*s.shape[:2], 1, 1) if self.settings.dropped == "channels" else (len(s), 1, *s.shape[2:])
        mask = torch.rand(shape, device=s.device) >= self.settings.mask
        generated: Tensor = self.generator(s * mask)
        term = functional.hint(generated, t) * (t.numel() / len(t))
        return Losses(task={"task": batch.loss(student.logits)}, distill={"generation": self.settings.alpha * term})
