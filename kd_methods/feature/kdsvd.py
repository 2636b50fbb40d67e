"""Distillation of singular vectors, Lee et al. 2018."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..errors import UserError
from ..registry import register
from ._maps import matched


class Settings(MethodSettings):
    beta: float = Field(1.0, ge=0, description="weight of the relation term")
    k: int = Field(1, ge=1, description="number of singular vectors")


@register
class KDSVD(Method[Settings]):
    """Matches how the leading singular vectors of consecutive stages relate."""

    card = Card(
        name="kdsvd",
        version=1,
        family="feature",
        title="KDSVD",
        paper="lee2018kdsvd",
        formula="L = CE(z_s, y) + beta / B * sum_l |exp(-(v_l+1 - v_l)^2 / 8)_s - (...)_t|^2, v singular vectors",
        source="mdistiller distillers/KDSVD.py and engine/cfg.py (k 1, weight 1)",
        divergences=(
            "mdistiller takes vectors over the width of a (C H, W) matrix and so do we; RepDistiller over the channels",
            "the loss depends on the signs of the teacher's vectors, which are whatever the SVD returns, as there",
            "coinciding singular values have derivative zero here; the references replace NaN in values, not gradients",
            "the authors' code clips the gradient of this term against the task's; the benchmarks and here do not",
            "networks with different numbers of stages are matched from the last stage backwards, and maps of different"
            " sizes are average-pooled to the smaller one (the references fail)",
        ),
        waits="a decomposition is looked at by the host, whether it converged",
    )
    needs = Needs(student=("stages",), teacher=("stages",))

    def setup(self) -> None:
        self.matched = len(matched("kdsvd", self.student, self.teacher))
        if self.matched < 2:
            raise UserError("method 'kdsvd' relates consecutive stages; this pair has fewer than two in common")

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        n = self.matched
        term = functional.kdsvd(student.stages[-n:], teacher.stages[-n:], k=self.settings.k)
        return Losses(task={"task": batch.loss(student.logits)}, distill={"relation": self.settings.beta * term})
