"""Cross-view consistency regularisation, Zhang et al. 2024."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss of each view")
    within: float = Field(2.0, ge=0, description="weight of the terms within a view")
    cross: float = Field(0.5, ge=0, description="weight of the terms across views")
    temperature: float = Field(4.0, gt=0, description="temperature of all divergences")
    weak_threshold: float = Field(0.9, ge=0, le=1, description="least confidence for the terms within a view")
    strong_threshold: float = Field(0.2, ge=0, le=1, description="least confidence for the terms across views")


@register
class CRLD(Method[Settings]):
    """Matches the teacher's probabilities on both views of an image, and each view's with the other's."""

    card = Card(
        name="crld",
        version=2,
        family="logit",
        title="CRLD",
        paper="zhang2024crld",
        formula=(
            "L = ce * [CE(weak) + CE(strong)] + within * mean m_w * [KD(s_w, t_w) + KD(s_s, t_s)]"
            " + cross * mean m_s * [KD(s_s, t_w) + KD(s_w, t_s)], m = whether the teacher's largest probability"
            " reaches a threshold, on the weak view (m_w) or on the strong one (m_s)"
        ),
        source="scx-822/CRLD-main mdistiller/distillers/CRLD.py, engine/cfg.py (1, 2, 0.5, T 4, 0.9, 0.2) @c9d6657",
        optimum="not at identity: the teacher's two views differ, and each of the student's learns from both",
        divergences=(
            "the authors' repository could not be read under their own name; the source is an upload that has their"
            " README, and no weights per pair; those of haiduo/DeepKD (within 0.5 or 1 for some) belong to its re-run",
            "the within-view terms of both views are masked by the weak view's confidence, the cross-view terms by the"
            " strong view's, as in that code",
            "with @ls, which its authors have not published, confidence is that of the logits as they are",
        ),
        recipe="cifar100-crld",
    )
    needs = Needs(teacher=("logits",), views=2)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        views = [(outputs.logits, outputs.second.logits) for outputs in (student, teacher)]
        common: dict[str, Any] = {
            "within_threshold": config.weak_threshold,
            "cross_threshold": config.strong_threshold,
            "temperature": config.temperature,
            "certain_by": (teacher.unchanged.logits, teacher.second.unchanged.logits),
        }
        return Losses(
            task={"task": config.ce * (batch.loss(student.logits) + batch.loss(student.second.logits))},
            distill={
                "within": functional.crld(*views, within_weight=config.within, cross_weight=0.0, **common),
                "cross": functional.crld(*views, within_weight=0.0, cross_weight=config.cross, **common),
            },
        )
