"""Probabilistic knowledge transfer, Passalis & Tefas 2018."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    beta: float = Field(30000.0, ge=0, description="weight of the divergence")


@register
class PKT(Method[Settings]):
    """Matches the distribution of cosine similarities within a batch."""

    card = Card(
        name="pkt",
        version=1,
        family="relation",
        title="PKT",
        paper="passalis2018pkt",
        formula="L = CE(z_s, y) + beta * mean_ij P_t log(P_t / P_s), P = row-normalised (cos + 1) / 2",
        source="RepDistiller scripts/run_cifar_distill.sh (-b 30000); mdistiller engine/cfg.py",
        divergences=(
            "mean over all pairs instead of a sum, which the weight of 30000 makes up for",
            "the relations are within one device's batch in the authors' code; here within all that processes share",
        ),
        modality="any",
        classes=1,
        batch="global",
    )
    needs = Needs(student=("pooled",), teacher=("pooled",))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        term = functional.pkt(student.pooled, teacher.pooled)
        return Losses(task={"task": batch.loss(student.logits)}, distill={"pkt": self.settings.beta * term})
