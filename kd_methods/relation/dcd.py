"""Discriminative and consistent distillation, Giakoumoglou & Stathaki 2024."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    beta: float = Field(1.0, ge=0, description="weight of both terms together")
    alpha: float = Field(0.5, ge=0, description="weight of the consistency term against the contrast")
    dim: int = Field(128, ge=1, description="size of the embeddings")
    tau: float = Field(1.0, gt=0, description="logarithm of the scale at the start")
    limit: float = Field(10.0, gt=0, description="largest scale")


@register
class DCD(Method[Settings]):
    """Contrasts student and teacher features within the batch, and makes the contrast alike in both directions."""

    card = Card(
        name="dcd",
        version=1,
        family="relation",
        title="DCD",
        paper="giakoumoglou2024dcd",
        formula=(
            "L = CE(z_s, y) + beta * [CE(S, 1..B) + alpha * KL(softmax(S, columns) || softmax(S, rows))],"
            " S = min(exp(tau), limit) * cos(E_s(f_s), E_t(f_t)), E linear"
        ),
        source="giakoumoglou/distillers cifar/distillers/DCD.py (alpha 0.5, tau 1, limit 10, dim 128, weight 1)",
        optimum="matching rows aligned and all others opposed as far as the batch allows; never 0, not at identity",
        divergences=(
            "the reference code also learns a bias added to all of S; both softmaxes ignore it, so it is left out",
            "tau is trained, as in the authors' older code for CIFAR-100 (train_student.py @10cae4d^); their ImageNet"
            " code leaves it at its start",
            "tau has no gradient once exp(tau) passes the limit, as in the reference code",
            "the contrast is within one device's batch in the authors' code; here within all that processes share",
        ),
        modality="any",
        batch="global",
    )
    needs = Needs(student=("pooled",), teacher=("pooled",), min_batch=2)

    def setup(self) -> None:
        self.embed_s, self.embed_t = (
            nn.Linear(view.shape(view.layout.pooled)[-1], self.settings.dim) for view in (self.student, self.teacher)
        )
        self.tau = nn.Parameter(torch.tensor(self.settings.tau))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        cosines = functional.cosine_similarity(self.embed_s(student.pooled), self.embed_t(teacher.pooled))
        similarity = self.tau.exp().clamp(max=config.limit) * cosines
        term = functional.discriminative_consistent(similarity, alpha=config.alpha)
        return Losses(task={"task": batch.loss(student.logits)}, distill={"contrast": config.beta * term})
