"""Attention transfer, Zagoruyko & Komodakis 2017: as the authors' code has it, and as the paper writes it."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from torch import Tensor

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register
from ._maps import matched


class Settings(MethodSettings):
    beta: float = Field(1000.0, ge=0, description="weight of the attention term")
    p: int = Field(2, ge=1, description="power of the activations in the attention map")


@register
class AT(Method[Settings]):
    """Matches where the stages' activations are large."""

    card = Card(
        name="at",
        version=2,
        family="feature",
        title="AT",
        paper="zagoruyko2017at",
        formula="L = CE(z_s, y) + beta * sum_stages mean((a(F_s) - a(F_t))^2), a = normalised mean_c |F|^p",
        source="RepDistiller scripts/run_cifar_distill.sh (-b 1000); mdistiller engine/cfg.py (p 2)",
        divergences=(
            "paper: beta / 2 times the difference's norm (at.paper); authors' code and the default: mean of its square,"
            " which every published table ran",
            "networks with different numbers of stages are matched from the first stage on, as in RepDistiller and the"
            " SimKD toolbox",
        ),
    )
    needs = Needs(student=("stages",), teacher=("stages",))

    def setup(self) -> None:
        self.matched = len(matched("at", self.student, self.teacher, from_first=True))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        n = self.matched
        term = self.settings.beta * self.distance(student.stages[:n], teacher.stages[:n])
        return Losses(task={"task": batch.loss(student.logits)}, distill={"attention": term})

    def distance(self, student_maps: tuple[Tensor, ...], teacher_maps: tuple[Tensor, ...]) -> Tensor:
        return functional.attention_transfer(student_maps, teacher_maps, p=self.settings.p)


@register
class ATPaper(AT):
    """AT with the norm of the difference instead of its square."""

    card = replace(
        AT.card,
        name="at.paper",
        title="AT (paper)",
        formula="L = CE(z_s, y) + sum_stages beta / (2 H W) * mean ||a(F_s) - a(F_t)||_2, a = normalised sum_c |F|^p",
        source="the paper's equation 2; its weight, 10^3 over the elements of attention map and batch",
        divergences=(
            "the authors' code, which every published table ran, squares the difference: at",
            AT.card.divergences[-1],
        ),
    )

    def distance(self, student_maps: tuple[Tensor, ...], teacher_maps: tuple[Tensor, ...]) -> Tensor:
        return functional.attention_distance(student_maps, teacher_maps, p=self.settings.p)
