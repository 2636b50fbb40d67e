"""Multi-level logit distillation, Jin et al. 2023: as the released code computes it, and as the paper writes it."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..functional.logit import up_to_median
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(0.1, ge=0, description="weight of the task loss of each view")
    kd: float = Field(0.9, ge=0, description="weight of every distillation term")
    temperature: float = Field(4.0, gt=0, description="first of the temperatures; the others are 3, 5, 2 and 6")


@register
class MLLD(Method[Settings]):
    """Matches logits, their classes' and their rows' correlations at five temperatures, on two views of each image."""

    card = Card(
        name="mlld",
        version=2,
        family="logit",
        title="MLLD",
        paper="jin2023mlld",
        formula=(
            "L = ce * [CE(weak) + CE(strong)] + kd * {m * sum_{T,3,5,2,6} KD(weak) + sum_{T,3,5} KD(strong)"
            " + sum_{2,6} KD(weak) + c * sum class(weak) + m * sum batch(weak)},"
            " class = ||P_s' P_s - P_t' P_t||^2 / K, batch = ||P_s P_s' - P_t P_t'||^2 / B,"
            " m, c = shares of samples and classes up to the median of the teacher's confidence"
        ),
        source="authors' mdistiller/distillers/KD_ours.py, mdistiller/engine/cfg.py (0.1, 0.9, 4)",
        divergences=(
            "the default repeats the released code, since the published numbers come from it: there the mask meets an"
            " averaged loss and so only scales it by m (about 1/2), temperatures 2 and 6 of the strong view read the"
            " weak one's logits, and the strong view's class and batch terms are computed but not added;"
            " mlld.paper has every term on both views, unmasked",
            "with @ls the KD terms alone see standardised logits, and the masks do not, as in the code released with"
            " logit standardisation",
        ),
        recipe="cifar100-mlld",
        batch="global",
    )
    needs = Needs(teacher=("logits",), views=2)
    raw_terms = ("class", "batch")

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        both = batch.loss(student.logits) + batch.loss(student.second.logits)
        terms = self._terms(student, teacher)
        return Losses(
            task={"task": config.ce * both},
            distill={name: config.kd * torch.stack(x).sum() for name, x in terms.items()},
        )

    def _terms(self, student: Outputs, teacher: Outputs) -> dict[str, list[Tensor]]:
        weak = student.logits, teacher.logits
        strong = student.second.logits, teacher.second.logits
        probabilities = teacher.unchanged.logits.float().softmax(1)
        samples, classes = (up_to_median(x) for x in (probabilities.amax(1), probabilities.sum(0)))
        all_five = (self.settings.temperature, 3.0, 5.0, 2.0, 6.0)
        return {
            "instance": [
                *(samples * functional.kd(*weak, temperature=t) for t in all_five),
                *(functional.kd(*strong, temperature=t) for t in all_five[:3]),
                *(functional.kd(*weak, temperature=t) for t in all_five[3:]),
            ],
            "class": [classes * functional.class_correlation(*weak, temperature=t) for t in all_five],
            "batch": [samples * functional.batch_correlation(*weak, temperature=t) for t in all_five],
        }


@register
class MLLDPaper(MLLD):
    """MLLD with every term on both views and at every temperature."""

    card = replace(
        MLLD.card,
        name="mlld.paper",
        version=1,
        title="MLLD (paper)",
        formula=(
            "L = ce * [CE(weak) + CE(strong)] + kd * sum_views sum_{T,3,5,2,6} [KD + class + batch],"
            " class = ||P_s' P_s - P_t' P_t||^2 / K, batch = ||P_s P_s' - P_t P_t'||^2 / B"
        ),
        source="the paper's section 3; weights and temperatures of the released code",
        divergences=(
            "our reading of the paper, without the masks and the slips of the released code (see mlld)",
            "with @ls the KD terms alone see standardised logits",
        ),
        our_choice=("ce", "kd", "temperature"),
    )

    def _terms(self, student: Outputs, teacher: Outputs) -> dict[str, list[Tensor]]:
        views = ((student.logits, teacher.logits), (student.second.logits, teacher.second.logits))
        pairs = [(*view, t) for view in views for t in (self.settings.temperature, 3.0, 5.0, 2.0, 6.0)]
        losses = {
            "instance": functional.kd,
            "class": functional.class_correlation,
            "batch": functional.batch_correlation,
        }
        return {name: [loss(s, z, temperature=t) for s, z, t in pairs] for name, loss in losses.items()}
