"""Scale-decoupled distillation, Wei et al. 2024, with DKD on every cell."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Outputs, Progress
from ..registry import register
from ._cells import CellSettings, OnCells


class Settings(CellSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    alpha: float = Field(1.0, ge=0, description="weight of the target-class term")
    beta: float = Field(8.0, ge=0, description="weight of the non-target term")
    temperature: float = Field(4.0, gt=0, description="temperature T of all softmaxes")
    warmup: float = Field(20.0, ge=0, description="epochs over which the distillation term grows linearly")


@register
class SDDDKD(OnCells[Settings]):
    """DKD on the whole image and on its parts, those that contradict the whole counting twice."""

    card = Card(
        name="sdd_dkd",
        version=1,
        family="logit",
        title="SD-DKD",
        paper="wei2024sdd",
        formula=(
            "L = ce * CE(z_s, y) + min(epoch / warmup, 1) * 1 / (N B) * sum over cells and images w * T^2 * [alpha *"
            " KL(b_t || b_s) + beta * KL(q_t || q_s)], cells and w as in sdd_kd, b and q as in dkd"
        ),
        source="shicaiwei123/SDD-CVPR2024 mdistiller/distillers/SDD_DKD.py, engine/cfg.py (1, 1, 8, T 4, warm-up 20);"
        " beta in configs/cifar100/sdd_dkd, scales in teacher_*.sh @e412036",
        optimum="where the logits of all cells agree",
        hard_labels="whose logit is told apart from the others, and that cells are right or wrong about",
        divergences=(
            "computed in logarithms; the reference code masks the label's class with -1000",
            "the cells' own classifier is the network's, as in the authors' rewritten networks",
        ),
        classes=3,
    )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        values: dict[str, Any] = config.model_dump(include={"alpha", "beta", "temperature"})
        term = functional.sdd_dkd(*self.cells(student, teacher), batch.labels, **values)
        return Losses(
            task={"task": config.ce * batch.loss(student.logits)},
            distill={"dkd": progress.ramp(config.warmup) * term},
        )
