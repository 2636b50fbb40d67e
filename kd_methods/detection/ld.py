"""Localization distillation, Zheng et al. 2022."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, DataInfo, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..errors import UserError
from ..registry import register


@register
class LD(Method):
    """Matches the distributions that both detectors give for the edges of the boxes at positive places."""

    card = Card(
        name="ld",
        version=1,
        family="detection",
        title="LD",
        paper="zheng2022ld",
        formula=(
            "L = task + weight * T^2 * sum_p w_p mean KL(edges_t / T || edges_s / T) / sum_p w_p,"
            " w = the student's best class score"
        ),
        source="mmdet configs/ld, LDHead (weight 0.25, T 10)",
        optimum="where the edges' distributions agree",
        divergences=(
            "the main distillation region only, as in mmdet; the authors' later code adds valuable regions beside it,"
            " a distillation of classes and an imitation of features",
        ),
        inputs="detection",
    )
    needs = Needs(student_units=("edges", "confidence"), teacher_units=("edges",))

    class Settings(MethodSettings):
        weight: float = Field(0.25, ge=0, description="weight of the distillation term")
        temperature: float = Field(10.0, gt=0, description="temperature T of the softmaxes over an edge's bins")

    settings: Settings

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__(student, teacher, info, settings)
        try:
            bins = {network.shape("edges") for network in (student, self.teacher)}
        except UserError:
            raise UserError("method 'ld' needs detectors that give distributions of box edges, as GFL does") from None
        if len(bins) != 1:
            raise UserError("method 'ld' needs two detectors that divide the edges of boxes into the same bins")

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        term = functional.localization(
            student["edges"], teacher["edges"], student["confidence"], temperature=self.settings.temperature
        )
        return Losses(task={"task": batch.loss(student.logits)}, distill={"ld": self.settings.weight * term})
