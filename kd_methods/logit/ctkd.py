"""Curriculum temperature for knowledge distillation, Li et al. 2023, with one global temperature."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(0.1, ge=0, description="weight of the task loss")
    kd: float = Field(0.9, ge=0, description="weight of the distillation term")
    start: float = Field(1.0, gt=0, description="lowest temperature")
    range: float = Field(20.0, gt=0, description="distance from the lowest to the highest temperature")
    loops: float = Field(10.0, gt=0, description="epochs over which the reversal grows to full strength")


@register
class CTKD(Method[Settings]):
    """KD at a learned temperature that works against the student: its gradient is reversed, gently at first."""

    card = Card(
        name="ctkd",
        version=1,
        family="logit",
        title="CTKD",
        paper="li2023ctkd",
        formula=(
            "L = ce * CE(z_s, y) + kd * T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), T = start + range *"
            " sigmoid(theta); the gradient of theta is multiplied by -(1 - cos(pi * min(epoch / loops, 1))) / 2"
        ),
        source="CTKD scripts/run_cifar_distill.sh (0.1, 0.9; T 1 to 21, 10 loops), helper/loops.py, temp_global.py",
        optimum="z_s = z_t up to a constant per row, at every temperature; theta ascends and has none",
        divergences=(
            "global temperature only; the instance-wise one (a small network on both logits) is missing",
            "the factor T^2 takes part in the temperature's gradient, as in the reference code",
            "theta has the student's optimiser, weight decay included, as in the reference code",
        ),
        modality="any",
    )
    needs = Needs(teacher=("logits",))

    def setup(self) -> None:
        self.theta = nn.Parameter(torch.ones(()))

    def temperature(self, reversal: float) -> Tensor:
        """T, with the gradient of ``theta`` multiplied by ``-reversal``."""
        return self.settings.start + self.settings.range * torch.sigmoid(_Reversed.apply(self.theta, reversal))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        reversal = (1 - math.cos(math.pi * progress.ramp(config.loops))) / 2
        term = functional.kd(student.logits, teacher.logits, temperature=self.temperature(reversal))
        return Losses(task={"task": config.ce * batch.loss(student.logits)}, distill={"kd": config.kd * term})


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -ctx.strength * gradients[0], None
