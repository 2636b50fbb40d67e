"""Feature distillation as timm ships it."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    task: float = Field(1.0, ge=0, description="weight of the task loss")
    distill: float = Field(1.0, ge=0, description="weight of the feature term")


@register
class TimmFeature(Method[Settings]):
    """Matches the vector that the classifier sees, through a linear map where widths differ."""

    card = Card(
        name="timm_feature",
        version=1,
        family="feature",
        title="Feature KD (timm)",
        paper="wightman2019timm",
        formula="L = task * CE(z_s, y) + distill * MSE(W f_s, f_t), W the identity where widths agree",
        source="timm 1.0.31 timm/task/distillation.py FeatureDistillationTask (1, 1)",
        optimum="where the projected vector equals the teacher's",
        divergences=(
            "given the task's weight alone, timm sets the other to one minus it; here both are what they are",
            "timm normalises the teacher's input by the teacher's own mean and deviation; here the task does",
            "with equal widths there is no map, and the optimum is identity",
        ),
    )
    needs = Needs(student=("pooled",), teacher=("pooled",))

    def setup(self) -> None:
        student_width, teacher_width = self.student.shapes("pooled")[0][0], self.teacher.shapes("pooled")[0][0]
        self.projection = nn.Identity() if student_width == teacher_width else nn.Linear(student_width, teacher_width)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.hint(self.projection(student.pooled), teacher.pooled)
        return Losses(
            task={"task": config.task * batch.loss(student.logits)}, distill={"feature": config.distill * term}
        )
