"""Softmax regression representation learning, Yang et al. 2021."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from .. import functional
from ..contract import Batch, Card, DataInfo, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..registry import register


@register
class SRRL(Method):
    """Puts the student's features through the teacher's classifier."""

    card = Card(
        name="srrl",
        version=1,
        family="feature",
        title="SRRL",
        paper="yang2021srrl",
        formula="L = CE(z_s, y) + beta * [MSE(D(f_s), f_t) + MSE(h_t(D(f_s)), z_t)], h_t = teacher's classifier",
        source="SimKD toolbox models/util.py (SRRL) for CIFAR-100; beta 1 as given there",
        optimum="where the connected student features equal the teacher's",
        divergences=(
            "CIFAR form: pooled vectors are matched by MSE; the authors' ImageNet code matches channel means of maps",
            "the SimKD toolbox adds a KD term to every method; here it is left out (use a combination)",
        ),
    )
    needs = Needs(student=("pooled",), teacher=("pooled", "logits"), min_batch=2)

    class Settings(MethodSettings):
        beta: float = Field(1.0, ge=0, description="weight of both terms")

    settings: Settings

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__(student, teacher, info, settings)
        d_s, d_t = student.shapes("pooled")[0][0], self.teacher.shapes("pooled")[0][0]
        self.connector = nn.Sequential(nn.Linear(d_s, d_t, bias=False), nn.BatchNorm1d(d_t), nn.ReLU())

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        beta = self.settings.beta
        features = self.connector(student.pooled)
        logits = self.teacher.resume(self.teacher.layout.pooled, features)
        return Losses(
            task={"task": batch.loss(student.logits)},
            distill={
                "feature": beta * functional.hint(features, teacher.pooled),
                "regression": beta * functional.hint(logits, teacher.logits),
            },
        )
