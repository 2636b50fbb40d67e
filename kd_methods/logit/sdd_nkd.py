"""Scale-decoupled distillation, Wei et al. 2024, with NKD on every cell: as released, and with NKD's mask."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Outputs, Progress
from ..registry import register
from ._cells import CellSettings, OnCells


class Settings(CellSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    weight: float = Field(1.0, ge=0, description="weight of both distillation terms together")
    gamma: float = Field(8.0, ge=0, description="weight of the second term against the target term")
    temperature: float = Field(4.0, gt=0, description="temperature T of the second term")
    warmup: float = Field(20.0, ge=0, description="epochs over which the distillation term grows linearly")


@register
class SDDNKD(OnCells[Settings]):
    """NKD on the whole image and on its parts, those that contradict the whole counting twice."""

    masked = False
    card = Card(
        name="sdd_nkd",
        version=1,
        family="logit",
        title="SD-NKD",
        paper="wei2024sdd",
        formula=(
            "L = ce * CE(z_s, y) + min(epoch / warmup, 1) * weight * 1 / (N B) * sum over cells and images w *"
            " [-p_t[y] log p_s[y] - gamma * T^2 * sum_k p_t,k^T log p_s,k^T], cells and w as in sdd_kd"
        ),
        source="shicaiwei123/SDD-CVPR2024 mdistiller/distillers/SDD_nkd.py, engine/cfg.py (1, 8, T 4, warm-up 20);"
        " gamma (there beta) in configs/cifar100/sdd_nkd, scales in teacher_*.sh @e412036",
        optimum="not identity: beside the second term, whose optimum it is, the target term pulls the label's logit up",
        hard_labels="whose logit is told apart from the others, and that cells are right or wrong about",
        divergences=(
            "the released code writes ones into a mask of ones, so that its non-target term runs over all classes;"
            " sdd_nkd.masked leaves the label's class out, as NKD and the paper do",
            "the cells' own classifier is the network's, as in the authors' rewritten networks",
        ),
    )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        cells, labels = self.cells(student, teacher), batch.labels
        term = functional.sdd_nkd(
            *cells, labels, gamma=config.gamma, temperature=config.temperature, masked=self.masked
        )
        return Losses(
            task={"task": config.ce * batch.loss(student.logits)},
            distill={"nkd": progress.ramp(config.warmup) * config.weight * term},
        )


@register
class SDDNKDMasked(SDDNKD):
    """SD-NKD whose second term leaves the label's class out."""

    masked = True
    card = replace(
        SDDNKD.card,
        name="sdd_nkd.masked",
        title="SD-NKD (masked)",
        formula=(
            "L = ce * CE(z_s, y) + min(epoch / warmup, 1) * weight * 1 / (N B) * sum over cells and images w *"
            " [-p_t[y] log p_s[y] - gamma * T^2 * sum_{k != y} q_t,k log q_s,k], cells and w as in sdd_kd, q as in nkd"
        ),
        optimum="no finite one: as NKD's, on every cell",
        divergences=("as NKD is defined; the released code masks nothing: sdd_nkd", SDDNKD.card.divergences[1]),
    )
