"""Knowledge distillation, Hinton et al. 2015."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(0.1, ge=0, description="weight of the task loss")
    kd: float = Field(0.9, ge=0, description="weight of the distillation term")
    temperature: float = Field(4.0, gt=0, description="temperature T of both softmaxes")


@register
class KD(Method[Settings]):
    """Matches softened class probabilities by KL divergence."""

    card = Card(
        name="kd",
        version=1,
        family="logit",
        title="KD",
        paper="hinton2015kd",
        formula=(
            "L = ce * CE(z_s, y) + kd * T^2 * KL(softmax(z_t / T) || softmax(z_s / T));"
            " on a regression both terms are mean squared errors"
        ),
        source="RepDistiller scripts/run_cifar_distill.sh (-r 0.1 -a 0.9); mdistiller engine/cfg.py",
        divergences=("the paper names no default weights or temperature; these are the field's",),
        modality="any",
        classes=1,
        by_sample=True,
    )
    needs = Needs(teacher=("logits",))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        return Losses(
            task={"task": config.ce * batch.loss(student.logits)},
            distill={"kd": config.kd * functional.kd(student.logits, teacher.logits, temperature=config.temperature)},
        )
