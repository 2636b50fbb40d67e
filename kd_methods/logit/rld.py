"""Distillation with refined logits, Sun et al. 2025."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    alpha: float = Field(1.0, ge=0, description="weight of the sample's confidence")
    beta: float = Field(8.0, ge=0, description="weight of the masked correlation")
    temperature: float = Field(4.0, gt=0, description="temperature T of the masked correlation")
    alpha_temperature: float = Field(1.0, gt=0, description="temperature T_a of the sample's confidence")
    warmup: float = Field(20.0, ge=0, description="epochs over which the distillation term grows linearly")


@register
class RLD(Method[Settings]):
    """Matches the label's probability with the teacher's largest, and those of classes that it puts below the label."""

    card = Card(
        name="rld",
        version=1,
        family="logit",
        title="RLD",
        paper="sun2025rld",
        formula=(
            "L = ce * CE(z_s, y) + min(epoch / warmup, 1) * [alpha * T_a^2 * KL((max p_t, 1 - max p_t) || (p_s[y],"
            " 1 - p_s[y])) + beta * T^2 * KL(q_t || q_s)], q = softmax over the classes k with z_t[k] < z_t[y]"
        ),
        source="zju-SWJ/RLD mdistiller/engine/cfg.py (1, 1, 8, T 4, T_a 1, warm-up 20) @d54578f",
        optimum="where the teacher is right, its logits; elsewhere its largest probability at the label",
        hard_labels="whose logit is told apart from the others",
        divergences=(
            "the README's example trains with T_a = T = 4, the configuration with T_a 1, our default; which of the two"
            " the published figures had is not stated",
            "in logarithms; the reference code takes that of a masked sum and can reach log 0",
        ),
        modality="any",
    )
    needs = Needs(teacher=("logits",))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.rld(
            student.logits,
            teacher.logits,
            batch.labels,
            alpha=config.alpha,
            beta=config.beta,
            temperature=config.temperature,
            alpha_temperature=config.alpha_temperature,
        )
        return Losses(
            task={"task": config.ce * batch.loss(student.logits)},
            distill={"rld": progress.ramp(config.warmup) * term},
        )
