"""Relational knowledge distillation, Park et al. 2019."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    weight: float = Field(1.0, ge=0, description="weight of both terms together")
    distance: float = Field(25.0, ge=0, description="weight of the pairwise distances")
    angle: float = Field(50.0, ge=0, description="weight of the triplet angles")


@register
class RKD(Method[Settings]):
    """Matches distances and angles between the pooled features of a batch."""

    card = Card(
        name="rkd",
        version=1,
        family="relation",
        title="RKD",
        paper="park2019rkd",
        formula="L = CE(z_s, y) + weight * [distance * Huber(d_s, d_t) + angle * Huber(cos_s, cos_t)]",
        source="RepDistiller scripts/run_cifar_distill.sh (-b 1); mdistiller engine/cfg.py (25, 50)",
        divergences=(
            "the relations are within one device's batch in the authors' code; here within all that processes share",
        ),
        modality="any",
        classes=1,
        batch="global",
    )
    needs = Needs(student=("pooled",), teacher=("pooled",), min_batch=2)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.rkd(
            student.pooled, teacher.pooled, distance_weight=config.distance, angle_weight=config.angle
        )
        return Losses(task={"task": batch.loss(student.logits)}, distill={"relation": config.weight * term})
