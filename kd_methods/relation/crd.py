"""Contrastive representation distillation, Tian et al. 2020."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..errors import UserError
from ..registry import register


class Settings(MethodSettings):
    beta: float = Field(0.8, ge=0, description="weight of both contrastive terms together")
    negatives: int = Field(16384, ge=1, description="number M of negatives per sample, if there are as many")
    tau: float = Field(0.07, gt=0, description="temperature of the scores")
    momentum: float = Field(0.5, ge=0, lt=1, description="share of the old entry in a bank's update")
    dim: int = Field(128, ge=1, description="size of the embeddings")


@register
class CRD(Method[Settings]):
    """Tells a sample's features in the other network from those of many samples of other classes."""

    card = Card(
        name="crd",
        version=1,
        family="relation",
        title="CRD",
        paper="tian2020crd",
        formula=(
            "L = CE(z_s, y) + beta * [NCE(e_s, bank_t) + NCE(e_t, bank_s)],"
            " NCE = -log h(positive) - sum_negatives log(1 - h), h = P / (P + M / N), P = exp(<e, bank_i> / tau) / Z,"
            " e = linear embedding of length 1"
        ),
        source="RepDistiller scripts/run_cifar_distill.sh (-a 0 -b 0.8), train_student.py (nce_k 16384, tau, momentum)",
        optimum="the positive's score unboundedly above, the negatives' below M / N; not at identity",
        order="each row draws negatives of its own",
        hard_labels="of which no negatives are drawn",
        divergences=(
            "negatives are drawn anew each step, with replacement; the reference draws without where it can",
            "M is at most the number of samples outside the most frequent class: small data sets have fewer than 16384",
            "Z is set from the method's first batch and then stays, as in the reference code",
            "the banks' random start is normalised, like their updates; the reference code's has length 1 on average",
            "computed in logarithms, without the reference code's 1e-7 in the denominators",
        ),
        modality="any",
        batch="global",
    )
    needs = Needs(student=("pooled",), teacher=("pooled",), data=("num_samples", "labels", "indices"))

    bank_s: Tensor
    bank_t: Tensor
    log_z: Tensor
    _sorted: Tensor
    _counts: Tensor
    _starts: Tensor

    def setup(self) -> None:
        assert self.info.labels is not None
        n, dim = self.info.num_samples, self.settings.dim
        counts = torch.bincount(self.info.labels, minlength=self.info.num_classes)
        self.negatives = min(self.settings.negatives, n - int(counts.max()))
        if self.negatives < 1:
            raise UserError("method 'crd' needs a training set with at least two classes")
        self.embed_s, self.embed_t = (
            nn.Linear(view.shape(view.layout.pooled)[-1], dim) for view in (self.student, self.teacher)
        )
        for name in ("bank_s", "bank_t"):
            self.register_buffer(name, F.normalize(2 * torch.rand(n, dim) - 1))
        self.register_buffer("log_z", torch.full((2,), torch.nan))  # nan until the first batch
        # Samples sorted by class, so that those of other classes are two runs around the class's own.
        self.register_buffer("_sorted", self.info.labels.argsort(stable=True), persistent=False)
        self.register_buffer("_counts", counts, persistent=False)
        self.register_buffer("_starts", counts.cumsum(0) - counts, persistent=False)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        e_s, e_t = self.embed_s(student.pooled), self.embed_t(teacher.pooled)
        picks = torch.cat([batch.indices.unsqueeze(1), self._draw(batch.labels)], 1)
        pairs = ((e_s, self.bank_t), (e_t, self.bank_s))
        scores = torch.stack(
            [functional.bank_scores(e, bank, picks, temperature=self.settings.tau) for e, bank in pairs]
        )
        n = len(self.bank_s)
        with torch.no_grad():
            first = scores.flatten(1).logsumexp(1) - math.log(picks.numel() / n)  # log(N * mean P)
            self.log_z = torch.where(self.log_z.isnan(), first, self.log_z)
            self.bank_s = self._updated(self.bank_s, e_s, batch.indices)
            self.bank_t = self._updated(self.bank_t, e_t, batch.indices)
        normalised = scores - self.log_z.view(2, 1, 1)
        terms = [functional.noise_contrastive(x, num_samples=n) for x in normalised]
        return Losses(
            task={"task": batch.loss(student.logits)}, distill={"contrast": self.settings.beta * (terms[0] + terms[1])}
        )

    def _draw(self, labels: Tensor) -> Tensor:
        """(B, M) random positions in the training set of samples of other classes."""
        count, start = self._counts[labels].unsqueeze(1), self._starts[labels].unsqueeze(1)
        others = len(self.bank_s) - count
        draw = torch.rand(len(labels), self.negatives, device=labels.device, dtype=torch.float64)
        rank = (draw * others).long()
        return self._sorted[rank + count * (rank >= start)]

    def _updated(self, bank: Tensor, embedding: Tensor, indices: Tensor) -> Tensor:
        # A new tensor, since the backward pass needs the old one.
        momentum = self.settings.momentum
        mixed = momentum * bank[indices] + (1 - momentum) * F.normalize(embedding.to(bank.dtype))
        return bank.index_copy(0, indices, F.normalize(mixed))
