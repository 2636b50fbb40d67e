"""Weighted transformed teacher matching, Zheng & Yang 2024."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    weight: float = Field(4.0, ge=0, description="weight of the divergence")
    power: float = Field(0.2, gt=0, le=1, description="exponent of the teacher's probabilities (gamma in the paper)")


@register
class WTTM(Method[Settings]):
    """As TTM, with rows weighted by how smooth the teacher's probabilities are."""

    card = Card(
        name="wttm",
        version=1,
        family="logit",
        title="WTTM",
        paper="zheng2024ttm",
        formula="L = ce * CE(z_s, y) + weight * mean[u * KL(q_t || p_s)], q_t ~ p_t^power, u = sum_k p_t,k^power",
        source="TTM README, the combination with CRD (--ttm_l 0.2 -a 4); distiller_zoo/wttm.py",
        optimum="z_s = power * z_t up to a constant per row",
        divergences=(
            "power and weight are tuned per pair in the paper; the public code names them only for the combination"
            " of WTTM with CRD, whose values are the defaults here",
        ),
        our_choice=("weight", "power"),
        modality="any",
    )
    needs = Needs(teacher=("logits",))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.wttm(student.logits, teacher.logits, power=config.power)
        return Losses(task={"task": config.ce * batch.loss(student.logits)}, distill={"wttm": config.weight * term})
