"""Information theoretic representation distillation, Miles et al. 2022."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from ..contract import Batch, Card, DataInfo, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..functional._precision import full_precision, unit
from ..registry import register


@full_precision
def correlation_loss(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """log2 of sum_i |r_i - 1|^(2 alpha), r_i the correlation over the batch of dimension i of (B, D) vectors.

    As in the authors' code r_i is the unbiased covariance scaled by (B - 1) / B, so that it stays below 1.
    """
    n = len(student)
    s, t = (unit(x - x.mean(0), dim=0) for x in (student, teacher.detach()))
    correlation = (s * t).sum(0) * (n - 1) / n
    return (correlation - 1).abs().pow(2 * alpha).sum().log2()


@full_precision
def mutual_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of G_s^2 - G_st^2, cosine Gram matrices (B, B) of unit trace; G_st = G_s G_t elementwise."""
    s, t = unit(student), unit(teacher.detach())
    own = s @ s.t()
    joint = own * (t @ t.t())
    own, joint = (gram / gram.trace().clamp_min(1e-12) for gram in (own, joint))
    return (own.pow(2) - joint.pow(2)).sum()


@register
class ITRD(Method):
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
    )
    needs = Needs(student=("pooled",), teacher=("pooled",), min_batch=2)

    class Settings(MethodSettings):
        correlation: float = Field(2.0, ge=0, description="weight l_c of the correlation term")
        mutual: float = Field(0.05, ge=0, description="weight l_m of the Gram term")
        alpha: float = Field(1.5, gt=0, description="exponent of the correlation term")

    settings: Settings

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__(student, teacher, info, settings)
        d_s, d_t = student.shapes("pooled")[0][0], self.teacher.shapes("pooled")[0][0]
        self.same = d_s == d_t
        self.embed = nn.Linear(d_s, d_t)

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        config = self.settings
        embedded = self.embed(student.pooled)
        mutual = mutual_loss(student.pooled if self.same else embedded, teacher.pooled)
        return Losses(
            task={"task": batch.loss(student.logits)},
            distill={
                "correlation": config.correlation * correlation_loss(embedded, teacher.pooled, config.alpha),
                "mutual": config.mutual * mutual,
            },
        )
