"""Normalised knowledge distillation, Yang et al. 2023."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    weight: float = Field(1.0, ge=0, description="weight of both distillation terms together")
    gamma: float = Field(1.5, ge=0, description="weight of the non-target term against the target term")
    temperature: float = Field(1.0, gt=0, description="temperature T of the non-target term")


@register
class NKD(Method[Settings]):
    """Matches the target's probability and, normalised apart, those of the other classes, by cross-entropy."""

    card = Card(
        name="nkd",
        version=1,
        family="logit",
        title="NKD",
        paper="yang2023nkd",
        formula=(
            "L = ce * CE(z_s, y) + weight * [-p_t[y] log p_s[y] - gamma * T^2 * sum_{i != y} q_t,i log q_s,i],"
            " q = softmax over the classes other than y at temperature T"
        ),
        source="cls_KD mmcls/models/dis_losses/nkd.py (gamma 1.5, temperature 1)",
        optimum="no finite one: where q_s = q_t and the student's target logit exceeds all others without bound",
        hard_labels="whose logit is told apart from the others",
        divergences=(
            "the default is that of CNNs on ImageNet, and of the values of CIFAR-100 that SDD's repository has; the"
            " authors' one CIFAR-100 configuration (cls_KD, ResNet34 to ResNet18) has gamma 3.5 and temperature 3",
            "computed in logarithms; the reference code removes the target with a mask",
        ),
        modality="any",
    )
    needs = Needs(teacher=("logits",))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.nkd(
            student.logits, teacher.logits, batch.labels, gamma=config.gamma, temperature=config.temperature
        )
        return Losses(task={"task": config.ce * batch.loss(student.logits)}, distill={"nkd": config.weight * term})
