"""Streamlined knowledge distillation, Jeong et al. 2026: as the authors run it, and as torchdistill's port does."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..functional.logit import up_to_median
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(0.1, ge=0, description="weight of the task loss")
    kd: float = Field(0.9, ge=0, description="weight of both distillation terms")
    temperature: float = Field(4.0, gt=0, description="temperature T of the KD term")
    ridge: float = Field(0.1, gt=0, description="added to the covariance's diagonal")


@register
class SKD(Method[Settings]):
    """KD, and the cosines between the samples' logits, compared under the covariance of their differences."""

    card = Card(
        name="skd",
        version=1,
        family="relation",
        title="SKD",
        paper="jeong2026skd",
        formula=(
            "L = ce * CE(z_s, y) + kd * m * T^2 * KL(softmax(z_t / T) || softmax(z_s / T))"
            " + kd * c * mean_i sqrt(D_i S^-1 D_i'), D = (cosines_s - cosines_t) / K, S = cov(D) + ridge * I,"
            " m, c = shares of samples and classes up to the median of the teacher's confidence"
        ),
        source="HyunJunSik/StreamLined Distiller/SKD.py (0.1, 0.9, T 4, ridge 0.1) @7458628",
        optimum="identity",
        divergences=(
            "the masks of samples and classes meet averaged losses in the authors' code, and so only scale them by m"
            " and c (about 1/2); skd.port, after torchdistill, has none",
            "at equality the gradient of the authors' code is NaN, that of ours is zero",
            "the authors say that values were chosen per pair (0.5 and 0.5 for resnet32x4 to resnet8x4) and give no"
            " list; they train with learning rate 0.1 and teachers of their own",
            "their epoch has every training image twice, once under RandAugment, so that 240 of them are 480 here",
        ),
        modality="any",
        batch="global",
    )
    needs = Needs(teacher=("logits",), min_batch=2)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        probabilities = teacher.logits.float().softmax(1)
        kd = functional.kd(student.logits, teacher.logits, temperature=config.temperature)
        direction = functional.skd(student.logits, teacher.logits, ridge=config.ridge)
        return Losses(
            task={"task": config.ce * batch.loss(student.logits)},
            distill={
                "kd": config.kd * up_to_median(probabilities.amax(1)) * kd,
                "direction": config.kd * up_to_median(probabilities.sum(0)) * direction,
            },
        )


class SKDPortSettings(MethodSettings):
    kd: float = Field(1.0, ge=0, description="weight of the KD term")
    direction: float = Field(1.0, ge=0, description="weight of the direction term")
    temperature: float = Field(4.0, gt=0, description="temperature T of the KD term")
    ridge: float = Field(0.1, gt=0, description="added to the covariance's diagonal")


@register
class SKDPort(SKD):
    """SKD as torchdistill ships it: without masks, task loss and factor T²."""

    card = replace(
        SKD.card,
        name="skd.port",
        title="SKD (torchdistill)",
        formula=(
            "L = kd * KL(softmax(z_t / T) || softmax(z_s / T)) + direction * mean_i sqrt(D_i S^-1 D_i'),"
            " D = cosines_s - cosines_t, S = cov(D) + ridge * I"
        ),
        source="yoshitomo-matsubara/torchdistill losses/mid_level.py (1, 1, T 4, ridge 0.1) @3e4373c",
        divergences=("labels are not used", "there with batch 512 and learning rate 0.2 on ImageNet"),
    )

    Settings = SKDPortSettings

    settings: SKDPortSettings  # type: ignore[assignment]

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        kd = functional.kd(student.logits, teacher.logits, temperature=config.temperature) / config.temperature**2
        direction = functional.skd(student.logits, teacher.logits, ridge=config.ridge, by_classes=False)
        return Losses(distill={"kd": config.kd * kd, "direction": config.direction * direction})
