"""VkD, Miles et al. 2024: an orthogonal projection."""

from __future__ import annotations

from pydantic import Field
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register
from ._maps import matched


class Settings(MethodSettings):
    weight: float = Field(1.0, ge=0, description="weight of the feature term")
    kd: float = Field(1.0, ge=0, description="weight of the KD term")


@register
class VkD(Method[Settings]):
    """Matches the mean of the last map after an orthogonal projection with the teacher's standardised vector."""

    card = Card(
        name="vkd",
        version=1,
        family="feature",
        title="VkD",
        paper="miles2024vkd",
        formula=(
            "L = CE(z_s, y) + weight * smooth L1(P mean(F_s), LayerNorm(f_t)) + kd * KL(softmax(z_t) || softmax(z_s)),"
            " P with orthonormal rows or columns"
        ),
        source="roymiles/vkd engine.py, train.py, main_distributed.py (1, 1) @4b48050",
        optimum="where the projected vector equals the teacher's standardised one, and the logits agree",
        divergences=(
            "the authors' KD term reads a distillation token's head, their students have a convolutional stem; here the"
            " logits are the student's own, and the network is as it is",
        ),
        recipe="imagenet-ofa",
    )
    needs = Needs(student=("last_map",), teacher=("pooled", "logits"))

    def setup(self) -> None:
        (shape, _), = matched("vkd", self.student, self.student, "last_map")  # fmt: skip
        self.projection = orthogonal(nn.Linear(shape[0], self.teacher.shapes("pooled")[0][0], bias=False))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.vkd(self.projection(student.last_map.mean((2, 3))), teacher.pooled)
        kd = functional.kd(student.logits, teacher.logits, temperature=1.0)
        return Losses(
            task={"task": batch.loss(student.logits)}, distill={"feature": config.weight * term, "kd": config.kd * kd}
        )
