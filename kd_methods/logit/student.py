"""The baseline: no teacher."""

from __future__ import annotations

from ..contract import Batch, Card, Losses, Outputs, Progress, TeacherlessMethod
from ..registry import register


@register
class Student(TeacherlessMethod):
    """The student trained alone, with the task's own loss."""

    card = Card(
        name="student",
        version=1,
        family="logit",
        title="Student (no KD)",
        formula="L = CE(z_s, y)",
        source="the task's recipe; no settings",
        optimum=None,
        modality="any",
        classes=1,
    )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        return Losses(task={"task": batch.loss(student.logits)})
