"""Inter-channel correlation, Liu et al. 2021."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register
from ._maps import matched


class Settings(MethodSettings):
    beta: float = Field(2.5, ge=0, description="weight of the correlation term")


@register
class ICKD(Method[Settings]):
    """Matches the inner products of the channels of the last map."""

    card = Card(
        name="ickd",
        version=1,
        family="feature",
        title="ICKD-C",
        paper="liu2021ickd",
        formula=(
            "L = CE(z_s, y) + beta * 1 / (C B) * ||G(E(F_s)) - G(F_t)||^2, G = C x C inner products of channels over"
            " positions, every row divided by its 2-norm, E = 1x1 convolution and BN"
        ),
        source="ADLab-AutoDrive/ICKD Cifar100/scripts/run_cifar_distill.sh (-a 0 -b 2.5) @403b8d3",
        optimum="where the embedded student's channels have the teacher's inner products",
        divergences=(
            "the authors build an embedding of the teacher, too, and never use it",
            "with the KL term, which the paper's main row has (-a 1), it is ickd+kd",
            "the authors' ImageNet code, like torchdistill's port of it, divides by the batch size once more; its one"
            " full configuration has weight 500, CE and KD 0.5 each at T 1, AdamW, and a student with ImageNet weights",
        ),
    )
    needs = Needs(student=("last_map",), teacher=("last_map",), min_batch=2)

    def setup(self) -> None:
        (student_shape, teacher_shape), = matched("ickd", self.student, self.teacher, "last_map")  # fmt: skip
        self.embed = nn.Sequential(
            nn.Conv2d(student_shape[0], teacher_shape[0], 1, bias=False), nn.BatchNorm2d(teacher_shape[0])
        )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        term = functional.ickd(self.embed(student.last_map), teacher.last_map)
        return Losses(task={"task": batch.loss(student.logits)}, distill={"correlation": self.settings.beta * term})
