"""Information theoretic representation distillation, Miles et al. 2022."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    correlation: float = Field(2.0, ge=0, description="weight l_c of the correlation term")
    mutual: float = Field(0.05, ge=0, description="weight l_m of the Gram term")
    alpha: float = Field(1.5, gt=0, description="exponent of the correlation term")


@register
class ITRD(Method[Settings]):
    """Correlates the pooled dimensions of both networks and matches their Gram matrices."""

    card = Card(
        name="itrd",
        version=1,
        family="feature",
        title="ITRD",
        paper="miles2022itrd",
        formula=(
            "L = CE(z_s, y) + l_c * log2 sum_i |r_i - 1|^(2 alpha) + l_m * sum (G_s^2 - G_st^2),"
            " r = correlation of D(f_s) and f_t, G = cosine Gram matrices of unit trace"
        ),
        source="authors' distiller_zoo/IT.py; train_student.py (2, 0.05, alpha 1.5; README, a WRN pair: 2, 1, 1.01)",
        optimum="where the correlations are largest; the logarithm has no other stationary point",
        divergences=(
            "constant dimensions and zero vectors, NaN in the authors' code, count as uncorrelated",
            "the correlation divides the unbiased covariance by B, as there, so that it cannot reach 1",
        ),
        batch="global",
    )
    needs = Needs(student=("pooled",), teacher=("pooled",), min_batch=2)

    def setup(self) -> None:
        d_s, d_t = self.student.shapes("pooled")[0][0], self.teacher.shapes("pooled")[0][0]
        self.same = d_s == d_t
        self.embed = nn.Linear(d_s, d_t)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        embedded = self.embed(student.pooled)
        mutual = functional.mutual_information(student.pooled if self.same else embedded, teacher.pooled)
        return Losses(
            task={"task": batch.loss(student.logits)},
            distill={
                "correlation": config.correlation
                * functional.correlation_information(embedded, teacher.pooled, alpha=config.alpha),
                "mutual": config.mutual * mutual,
            },
        )
