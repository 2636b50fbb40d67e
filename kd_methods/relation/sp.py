"""Similarity-preserving distillation, Tung & Mori 2019."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    beta: float = Field(3000.0, ge=0, description="weight of the similarity term")


@register
class SP(Method[Settings]):
    """Matches which samples of a batch activate the last stage alike."""

    card = Card(
        name="sp",
        version=1,
        family="relation",
        title="SP",
        paper="tung2019sp",
        formula="L = CE(z_s, y) + beta * ||G_s - G_t||_F^2 / B^2, G = row-normalised A A^T of the last stage",
        source="RepDistiller scripts/run_cifar_distill.sh (-b 3000), distiller_zoo/SP.py; mdistiller engine/cfg.py",
        divergences=(
            "the relations are within one device's batch in the authors' code; here within all that processes share",
        ),
        batch="global",
    )
    needs = Needs(student=("stages",), teacher=("stages",))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        term = functional.similarity_preserving(student.stages[-1], teacher.stages[-1])
        return Losses(task={"task": batch.loss(student.logits)}, distill={"similarity": self.settings.beta * term})
