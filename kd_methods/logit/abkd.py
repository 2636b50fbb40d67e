"""Distillation by the alpha-beta-divergence, Wang et al. 2025."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    weight: float = Field(32.0, ge=0, description="weight of the divergence")
    alpha: float = Field(0.8, description="exponent of the teacher's probabilities")
    beta: float = Field(0.3, description="exponent of the student's probabilities")
    temperature: float = Field(4.0, gt=0, description="temperature T of both softmaxes")


@register
class ABKD(Method[Settings]):
    """Matches softened probabilities by a divergence between KL and reverse KL."""

    card = Card(
        name="abkd",
        version=1,
        family="logit",
        title="ABKD",
        paper="wang2025abkd",
        formula=(
            "L = ce * CE(z_s, y) + weight * D(p_t || p_s), D(p || q) = -1 / (alpha beta) * sum_k [p^alpha q^beta"
            " - alpha / (alpha + beta) * p^(alpha + beta) - beta / (alpha + beta) * q^(alpha + beta)], p and q at"
            " temperature T"
        ),
        source="ghwang-s/abkd README.md (-r 1 -b 32, alpha 0.8, beta 0.3 for resnet56 to resnet20), T 4 @df81318",
        divergences=(
            "the values are published for resnet56 to resnet20 alone (a comment in the script has weight 64 for it);"
            " other pairs get them, too",
            "no factor T^2, as in the authors' code; alpha 1, beta 0 and weight T^2 is KD",
        ),
        our_choice=("weight", "alpha", "beta", "temperature"),
        modality="any",
    )
    needs = Needs(teacher=("logits",))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.abkd(
            student.logits, teacher.logits, alpha=config.alpha, beta=config.beta, temperature=config.temperature
        )
        return Losses(
            task={"task": config.ce * batch.loss(student.logits)}, distill={"divergence": config.weight * term}
        )
