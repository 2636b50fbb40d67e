"""A simple recipe, Miles & Mikolajczyk 2024: the form for CNNs, and the one for transformers."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    weight: float = Field(2.0, ge=0, description="weight of the logarithm")
    exponent: float = Field(4.0, gt=0, description="exponent of the differences")
    kd: float = Field(1.0, ge=0, description="weight of the KD term")
    temperature: float = Field(1.0, gt=0, description="temperature T of the KD term")


@register
class SRD(Method[Settings]):
    """Matches pooled vectors after a linear map and normalisation by the batch, in a logarithm, and the logits."""

    card = Card(
        name="srd",
        version=1,
        family="feature",
        title="SRD",
        paper="miles2024srd",
        formula=(
            "L = CE(z_s, y) + weight * log sum |n(W f_s) - n(f_t)|^exponent + kd * T^2 * KL(softmax(z_t / T) ||"
            " softmax(z_s / T)), n(f) = (f - mean) / sqrt(var + 1e-4) over the batch"
        ),
        source="roymiles/Simple-Recipe-Distillation imagenet/torchdistill/losses/single.py (2, exponent 4; 1, T 1)"
        " @31e8477, for ResNet34 to ResNet18",
        optimum="where the normalised vectors agree, which is a singularity of the logarithm, and the logits agree",
        divergences=(
            "the teacher's vectors are normalised by the batch, too; a normalisation in evaluation mode with fresh"
            " statistics would be none",
            "where both agree the logarithm ends at a finite value without gradient; the authors' has no bound",
            "nothing is published for CIFAR-100: the values are ImageNet's",
        ),
        our_choice=("weight", "kd", "temperature"),
        batch="global",
    )
    needs = Needs(student=("pooled",), teacher=("pooled", "logits"), min_batch=2)

    def setup(self) -> None:
        self.projection = nn.Linear(self.student.shapes("pooled")[0][0], self.teacher.shapes("pooled")[0][0])

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        kd = functional.kd(student.logits, teacher.logits, temperature=config.temperature)
        return Losses(
            task={"task": batch.loss(student.logits)},
            distill={
                "representation": config.weight * self._distance(self.projection(student.pooled), teacher.pooled),
                "kd": config.kd * kd,
            },
        )

    def _distance(self, projected: Tensor, target: Tensor) -> Tensor:
        return functional.srd(projected, target, exponent=self.settings.exponent)


class SRDCorrelationSettings(Settings):
    weight: float = Field(1.0, ge=0, description="weight of the logarithm")


@register
class SRDCorrelation(SRD):
    """SRD's form for transformers: the correlations of the vectors' dimensions over the batch."""

    card = replace(
        SRD.card,
        name="srd.correlation",
        title="SRD (correlation)",
        formula=(
            "L = CE(z_s, y) + weight * log(sum_d |r_d - 1|^exponent + 1e-5) + kd * T^2 * KL(softmax(z_t / T) ||"
            " softmax(z_s / T)), r_d = correlation of dimension d of W f_s and f_t over the batch"
        ),
        source="roymiles/Simple-Recipe-Distillation deit/models.py, main.py (1, exponent 4; 1, T 1) @31e8477",
        optimum="where the projected vectors equal the teacher's up to scale and shift, and the logits agree",
        divergences=(
            "the authors' KD term reads the distillation token's head, the vectors are means of the patch tokens; here"
            " both are the student's own logits and pooled vector",
            "their training script refers to undefined names and cannot be run as published",
        ),
    )

    Settings = SRDCorrelationSettings

    def _distance(self, projected: Tensor, target: Tensor) -> Tensor:
        return functional.srd_correlation(projected, target, exponent=self.settings.exponent)
