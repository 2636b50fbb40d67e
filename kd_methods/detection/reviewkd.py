"""Knowledge review on feature pyramids, Chen et al. 2021."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..feature.reviewkd import ABF
from ..registry import register
from ._levels import channels


class Settings(MethodSettings):
    beta: float = Field(1.0, ge=0, description="weight of the review term")
    mid: int = Field(256, ge=1, description="width inside the fusions")


@register
class PyramidReviewKD(Method[Settings]):
    """Fuses the student's levels from the coarsest on and matches each fusion with the teacher's level."""

    card = Card(
        name="reviewkd.fpn",
        version=1,
        family="feature",
        title="ReviewKD",
        paper="chen2021reviewkd",
        formula="L = task + beta * sum_levels HCL(ABF_l(F_s,l, ABF_l+1(...)), F_t,l)",
        source="mdistiller detection/configs (weight 1.0 for R50, 1.2 for R18, 2.0 for MobileNetV2; width 256)",
        optimum="where the fused student pyramid equals the teacher's",
        divergences=("without the warm-up of classification, as the authors' code for detection",),
        modality="detection",
    )
    needs = Needs(student=("stages",), teacher=("stages",), min_batch=2)

    def setup(self) -> None:
        widths = channels("reviewkd.fpn", self.student, self.teacher)
        last, mid = len(widths) - 1, self.settings.mid
        self.fusions = nn.ModuleList(ABF(s, mid, t, None, fuse=level < last) for level, (s, t) in enumerate(widths))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        fused: list[Tensor] = []
        residual = None
        for x, fusion in zip(reversed(student.stages), reversed(self.fusions), strict=True):
            out, residual = fusion(x, residual)
            fused.insert(0, out)
        term = self.settings.beta * functional.hierarchical_context(fused, teacher.stages)
        return Losses(task={"task": batch.loss(student.logits)}, distill={"review": term})
