"""MiniLMv2, Wang et al. 2021."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..errors import UserError
from ..registry import register
from ._layers import require_attention, width

FIELDS = ("stages", "queries", "keys", "values")


class Settings(MethodSettings):
    task: float = Field(1.0, ge=0, description="weight of the task loss")
    relations: float = Field(1.0, ge=0, description="weight of the sum of the three relations' divergences")
    head_width: int = Field(16, ge=1, description="width of a relation head in the teacher")
    teacher_layer: int | None = Field(None, ge=1, description="the teacher's layer, from 1; null for the last")


@register
class MiniLMv2(Method[Settings]):
    """Matches the relations of tokens among queries, keys and values, in heads that are cut anew."""

    card = Card(
        name="minilmv2",
        version=2,
        family="relation",
        title="MiniLMv2",
        paper="wang2021minilmv2",
        formula=(
            "L = task * CE(z_s, y) + relations * sum over X in {Q, K, V} of KL(softmax(X_t X_t^T / sqrt d_t) ||"
            " softmax(X_s X_s^T / sqrt d_s)), last layer of the student and one of the teacher's, mean over relation"
            " heads and a text's tokens"
        ),
        source="arXiv 2012.15828 (48 relation heads for a base teacher, 64 for a large one: 16 values each);"
        " bloomberg/minilmv2.bb minilmv2/minilmv2.py, parsers.py @0d78e20 for means and weights",
        optimum="where queries, keys and values of the two layers have the same relations",
        divergences=(
            "the paper distils in pre-training, then fine-tunes; here the terms stand beside the task's loss while the"
            " student is fine-tuned, so the task's weight is our choice",
            "GLMKD averages over padding, too",
            "for large teachers the paper takes an upper middle layer (teacher_layer)",
        ),
        our_choice=("task",),
        modality="text",
        classes=1,
    )
    needs = Needs(student=FIELDS, teacher=FIELDS)

    def setup(self) -> None:
        require_attention(self.card.name, self.student, self.teacher)
        student_width, teacher_width, each = width(self.student), width(self.teacher), self.settings.head_width
        self.heads = teacher_width // each
        if teacher_width % each or student_width % self.heads:
            raise UserError(
                f"setting minilmv2.head_width={each}: the widths {student_width} and {teacher_width} of student and"
                " teacher cannot be cut into as many heads"
            )
        layers = len(self.teacher.layout.queries)
        self.layer = (self.settings.teacher_layer or layers) - 1
        if self.layer >= layers:
            raise UserError(f"setting minilmv2.teacher_layer={self.layer + 1}: the teacher has {layers} layers")

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config, i = self.settings, self.layer
        student_vectors = student.queries[-1], student.keys[-1], student.values[-1]
        teacher_vectors = teacher.queries[i], teacher.keys[i], teacher.values[i]
        total = functional.minilmv2(student_vectors, teacher_vectors, student.stages[-1].mask, heads=self.heads)
        return Losses(
            task={"task": config.task * batch.loss(student.logits)}, distill={"relations": config.relations * total}
        )
