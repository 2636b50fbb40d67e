"""Decoupled knowledge distillation, Zhao et al. 2022."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    alpha: float = Field(1.0, ge=0, description="weight of the target-class term")
    beta: float = Field(8.0, ge=0, description="weight of the non-target term")
    temperature: float = Field(4.0, gt=0, description="temperature T of both softmaxes")
    warmup: float = Field(20.0, ge=0, description="epochs over which the distillation term grows linearly")


@register
class DKD(Method[Settings]):
    """Weights the label's class and the other classes of KD's divergence independently."""

    card = Card(
        name="dkd",
        version=1,
        family="logit",
        title="DKD",
        paper="zhao2022dkd",
        formula="L = ce * CE(z_s, y) + min(epoch / warmup, 1) * T^2 * [alpha * KL(b_t || b_s) + beta * KL(q_t || q_s)]",
        source="mdistiller engine/cfg.py, distillers/DKD.py; beta per pair in configs/cifar100/dkd",
        hard_labels="whose logit is told apart from the others",
        divergences=(
            "beta is tuned per pair in the paper's configurations (2, 6 or 8 on CIFAR-100); the default is 8",
            "the warm-up of the distillation term is in the reference code only",
            "computed in logarithms; the reference code masks the label's class with -1000 and can reach log 0",
        ),
        modality="any",
        classes=3,
        by_sample=True,
    )
    needs = Needs(teacher=("logits",))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.dkd(
            student.logits,
            teacher.logits,
            batch.labels,
            alpha=config.alpha,
            beta=config.beta,
            temperature=config.temperature,
        )
        return Losses(
            task={"task": config.ce * batch.loss(student.logits)},
            distill={"dkd": progress.ramp(config.warmup) * term},
        )
