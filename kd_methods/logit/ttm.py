"""Transformed teacher matching, Zheng & Yang 2024."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    weight: float = Field(45.0, ge=0, description="weight of the divergence")
    power: float = Field(0.1, gt=0, le=1, description="exponent of the teacher's probabilities (gamma in the paper)")


@register
class TTM(Method[Settings]):
    """Matches the plain student to the teacher's power-transformed probabilities: temperature on one side only."""

    card = Card(
        name="ttm",
        version=1,
        family="logit",
        title="TTM",
        paper="zheng2024ttm",
        formula="L = ce * CE(z_s, y) + weight * KL(q_t || p_s), q_t ~ p_t^power; no temperature on p_s, no T^2",
        source="TTM README (vgg13 to vgg8: --ttm_l 0.1 -r 1 -b 45 -a 0)",
        optimum="z_s = power * z_t up to a constant per row",
        divergences=("power and weight are tuned per pair in the paper; the defaults are those of vgg13 to vgg8",),
        our_choice=("weight", "power"),
        modality="any",
    )
    needs = Needs(teacher=("logits",))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.ttm(student.logits, teacher.logits, power=config.power)
        return Losses(task={"task": config.ce * batch.loss(student.logits)}, distill={"ttm": config.weight * term})
