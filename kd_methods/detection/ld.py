"""Localization distillation, Zheng et al. 2022."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register
from ._levels import IMAGES, check_edges


class Settings(MethodSettings):
    weight: float = Field(0.25, ge=0, description="weight of the distillation term")
    temperature: float = Field(10.0, gt=0, description="temperature T of the softmaxes over an edge's bins")


@register
class LD(Method[Settings]):
    """Matches the distributions that both detectors give for the edges of the boxes at positive places."""

    card = Card(
        name="ld",
        version=2,
        family="logit",
        title="LD",
        paper="zheng2022ld",
        formula=(
            "L = task + weight * 2 / B * sum_p w_p T^2 mean KL(edges_t / T || edges_s / T), p positive places of B"
            " images, w = the student's best class score"
        ),
        source="mmdet configs/ld, LDHead (weight 0.25, T 10)",
        optimum="where the edges' distributions agree",
        divergences=(
            "mmdet sums over the images of a GPU, two of them; 2 / B makes the weight independent of the batch",
            "the main distillation region only, as in mmdet; ld.vlr is the authors' later code, with valuable regions,"
            " a distillation of classes and an imitation of features beside it",
        ),
        waits="the places with an object are counted",
        modality="detection",
    )
    needs = Needs(student_units=("dense",), teacher_units=("dense",))

    def setup(self) -> None:
        check_edges("ld", self.student, self.teacher)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        dense, targets = student["dense"], teacher["dense"]
        at, confidence = dense.positive, dense.classes.detach().sigmoid().amax(1)
        temperature = self.settings.temperature
        total = functional.localization(dense.edges[at], targets.edges[at], confidence[at], temperature=temperature)
        term = self.settings.weight * IMAGES / len(batch.boxes) * total
        return Losses(task={"task": batch.loss(student.logits)}, distill={"ld": term})
