"""Correlation congruence, Peng et al. 2019: the form that benchmarks run, and the paper's."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    beta: float = Field(0.02, ge=0, description="weight of the congruence term")
    dim: int = Field(128, ge=1, description="size of the embeddings")


@register
class CC(Method[Settings]):
    """Lessens the differences of embedded features where neighbours in the batch differ alike."""

    card = Card(
        name="cc",
        version=1,
        family="relation",
        title="CC",
        paper="peng2019cc",
        formula="L = CE(z_s, y) + beta * mean_i <D_i, D_{i+1}>, D = |E_s(f_s) - E_t(f_t)|, E linear",
        source="RepDistiller scripts/run_cifar_distill.sh (-b 0.02), distiller_zoo/CC.py",
        optimum="E_s(f_s) = E_t(f_t); also any D with disjoint supports of neighbours",
        order="its formula pairs neighbours in the batch",
        divergences=(
            "not the paper's formula (that is cc.paper): RepDistiller has this from an author and its tables use it",
            "depends on the order of samples within the batch",
            "the teacher's embedding is trained too, as in RepDistiller; both may shrink",
        ),
        modality="any",
        classes=1,
        batch="global",
    )
    needs = Needs(student=("pooled",), teacher=("pooled",), min_batch=2)

    def setup(self) -> None:
        self.embed_s, self.embed_t = (
            nn.Linear(view.shape(view.layout.pooled)[-1], self.settings.dim) for view in (self.student, self.teacher)
        )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        # The function takes its second argument as a constant; as a difference from zero both embeddings are trained.
        difference = self.embed_s(student.pooled).float() - self.embed_t(teacher.pooled).float()
        term = functional.correlation_congruence(difference, torch.zeros_like(difference))
        return Losses(task={"task": batch.loss(student.logits)}, distill={"congruence": self.settings.beta * term})


class CCPaperSettings(MethodSettings):
    beta: float = Field(100.0, ge=0, description="weight of the congruence term")
    gamma: float = Field(0.4, gt=0, description="width of the kernel")
    order: int = Field(2, ge=1, description="last power of the kernel's Taylor series")


@register
class CCPaper(Method[CCPaperSettings]):
    """Matches the matrix of Gaussian-kernel similarities within a batch: CC as the paper writes it."""

    card = Card(
        name="cc.paper",
        version=1,
        family="relation",
        title="CC (paper)",
        paper="peng2019cc",
        formula=(
            "L = CE(z_s, y) + beta * ||K_s - K_t||_F^2 / B^2,"
            " K_ij = exp(-2 gamma) * sum_{p=0}^{order} (2 gamma)^p / p! * cos(f_i, f_j)^p"
        ),
        source="the paper's section 3.3 (gamma 0.4, order 2); weight 100 from re-implementations that use this form",
        divergences=(
            "without the paper's KD term: combine it with kd",
            "the paper's class-uniform and super-class batch sampling is missing; batches are the protocol's",
            "the relations are within one device's batch in the authors' code; here within all that processes share",
        ),
        our_choice=("beta",),
        batch="global",
    )
    needs = Needs(student=("pooled",), teacher=("pooled",), min_batch=2)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.kernel_congruence(student.pooled, teacher.pooled, gamma=config.gamma, order=config.order)
        return Losses(task={"task": batch.loss(student.logits)}, distill={"congruence": config.beta * term})
