"""Weighted soft labels, Zhou et al. 2021."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    alpha: float = Field(2.5, ge=0, description="weight of the soft-label term")
    temperature: float = Field(2.0, gt=0, description="temperature T of both softmaxes")


@register
class WSLD(Method[Settings]):
    """Soft labels with a weight per sample: small where the student already does better than the teacher."""

    card = Card(
        name="wsld",
        version=1,
        family="logit",
        title="WSLD",
        paper="zhou2021wsld",
        formula=(
            "L = ce * CE(z_s, y) + alpha * T^2 * mean[(1 - exp(-CE_s / CE_t)) * H(softmax(z_t / T), softmax(z_s / T))]"
        ),
        source="authors' knowledge_distiller.py (ImageNet: T 2, alpha 2.5); mmrazor weighted_soft_label_distillation",
        optimum="z_s = z_t up to a constant per row; the value there is a weighted entropy of the teacher, not 0",
        divergences=(
            "the defaults are ImageNet's; the authors' CIFAR-100 runs have T 4 and alpha 2.25 (their issue 2)",
            "the authors' teacher is in training mode (statistics of one GPU's batch); here it is in evaluation mode",
            "the task loss is the protocol's own; label smoothing in it is the protocol's choice",
        ),
        modality="any",
    )
    needs = Needs(teacher=("logits",))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.wsld(student.logits, teacher.logits, batch.targets, temperature=config.temperature)
        return Losses(task={"task": config.ce * batch.loss(student.logits)}, distill={"wsld": config.alpha * term})
