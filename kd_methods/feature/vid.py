"""Variational information distillation, Ahn et al. 2019."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..functional.feature import same_size
from ..registry import register
from ._maps import matched


class Settings(MethodSettings):
    beta: float = Field(1.0, ge=0, description="weight of the information term")
    initial_variance: float = Field(5.0, gt=1e-4, description="variance of every channel at the start")
    eps: float = Field(1e-5, gt=0, description="least variance")

    @model_validator(mode="after")
    def _starts_above_the_least(self) -> Self:
        if self.initial_variance <= self.eps:
            raise ValueError(f"initial_variance {self.initial_variance} has to be larger than eps {self.eps}")
        return self


@register
class VID(Method[Settings]):
    """Maximises a variational bound on the mutual information of the stages."""

    card = Card(
        name="vid",
        version=2,
        family="feature",
        title="VID",
        paper="ahn2019vid",
        formula="L = CE(z_s, y) + beta * sum_stages mean([(F_t - mu(F_s))^2 / s + log s] / 2), s = softplus(theta)",
        source="RepDistiller distiller_zoo/VID.py, scripts/run_cifar_distill.sh (-b 1)",
        optimum="where mu(F_s) equals F_t; the value has no lower bound of its own but log(eps) / 2 a stage",
        divergences=(
            "mdistiller's copy keeps theta in a plain list, so that the variance is never trained; see vid.mdistiller",
            "networks with different numbers of stages are matched from the first stage on, as in RepDistiller and the"
            " SimKD toolbox",
        ),
    )
    needs = Needs(student=("stages",), teacher=("stages",))
    trained_variance = True

    def setup(self) -> None:
        self.means = nn.ModuleList()
        self.thetas = nn.ParameterList()
        above = self.settings.initial_variance - self.settings.eps
        theta = math.log(math.expm1(above)) if above < 30 else above  # the same in fp32, and no overflow
        for (c_s, *_), (c_t, *_) in matched("vid", self.student, self.teacher, from_first=True):
            widths = [(c_s, c_t), (c_t, c_t), (c_t, c_t)]
            first, second, third = (nn.Conv2d(a, b, 1, bias=False) for a, b in widths)
            self.means.append(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third))
            self.thetas.append(nn.Parameter(torch.full((c_t,), theta), requires_grad=self.trained_variance))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        n = len(self.means)
        terms = []
        for s, t, mean, theta in zip(student.stages[:n], teacher.stages[:n], self.means, self.thetas, strict=True):
            s, t = same_size(s, t)
            terms.append(functional.gaussian_nll(mean(s), t, theta, eps=self.settings.eps))
        term = self.settings.beta * torch.stack(terms).sum()
        return Losses(task={"task": batch.loss(student.logits)}, distill={"information": term})


@register
class VIDFrozen(VID):
    """VID as mdistiller runs it: the variance stays at its start."""

    card = replace(
        VID.card,
        name="vid.mdistiller",
        title="VID (mdistiller)",
        source="mdistiller distillers/VID.py and engine/cfg.py (weight 1, variance 5)",
        optimum="where mu(F_s) equals F_t",
        divergences=(
            "the paper and RepDistiller train the variance; with it frozen the term is a scaled MSE",
            *VID.card.divergences[1:],
        ),
    )
    trained_variance = False
