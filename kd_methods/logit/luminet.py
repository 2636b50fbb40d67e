"""LumiNet, Hossain et al. 2025."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(2.0, ge=0, description="weight of the task loss")
    alpha: float = Field(33.0, ge=0, description="root of the distillation term's weight")
    temperature: float = Field(4.0, gt=0, description="temperature T of both softmaxes")
    warmup: float = Field(20.0, ge=0, description="epochs over which the distillation term grows linearly")


@register
class LumiNet(Method[Settings]):
    """Matches probabilities after the batch has standardised the logits of each class."""

    card = Card(
        name="luminet",
        version=1,
        family="logit",
        title="LumiNet",
        paper="hossain2025luminet",
        formula=(
            "L = ce * CE(z_s, y) + min(epoch / warmup, 1) * alpha^2 * KL(softmax(n(z_t) / T) || softmax(n(z_s) / T)),"
            " n(z) = (z - mean) / sqrt(var + 1e-5) per class over the batch"
        ),
        source="ismail31416/LumiNet configs/cifar100/luminet/res32x4_res8x4.yaml (33, 4, 2), engine/cfg.py @8cf749b",
        divergences=(
            "the factor is alpha^2 and not T^2",
            "values are published for six pairs of CIFAR-100; the others get those of resnet32x4 to resnet8x4",
            "the gradient runs through the student's statistics",
            "statistics are of one device's batch in the authors' code; here of all that processes share",
        ),
        our_choice=("ce", "alpha", "temperature"),
        modality="any",
        batch="global",
    )
    needs = Needs(teacher=("logits",), min_batch=2)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.luminet(student.logits, teacher.logits, alpha=config.alpha, temperature=config.temperature)
        return Losses(
            task={"task": config.ce * batch.loss(student.logits)},
            distill={"perception": progress.ramp(config.warmup) * term},
        )
