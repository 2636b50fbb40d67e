"""Scale-decoupled distillation, Wei et al. 2024, with KD on every cell."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Outputs, Progress
from ..registry import register
from ._cells import CellSettings, OnCells


class Settings(CellSettings):
    ce: float = Field(0.1, ge=0, description="weight of the task loss")
    kd: float = Field(0.9, ge=0, description="weight of the distillation term")
    temperature: float = Field(4.0, gt=0, description="temperature T of all softmaxes")


@register
class SDDKD(OnCells[Settings]):
    """KD on the whole image and on its parts, those that contradict the whole counting twice."""

    card = Card(
        name="sdd_kd",
        version=1,
        family="logit",
        title="SD-KD",
        paper="wei2024sdd",
        formula=(
            "L = ce * CE(z_s, y) + kd * 1 / (N B) * sum over cells and images w * T^2 * KL(softmax(z_t,n / T) ||"
            " softmax(z_s,n / T)), z_n = classifier on cell n of the last map pooled to 1x1, 2x2 (and 4x4),"
            " w = 2 where the teacher is right on the image and wrong on the cell or the reverse, else 1"
        ),
        source="shicaiwei123/SDD-CVPR2024 mdistiller/distillers/KD.py, engine/cfg.py (0.1, 0.9, T 4); scales per pair"
        " in teacher_*.sh @e412036",
        optimum="where the logits of all cells agree",
        hard_labels="that cells are right or wrong about",
        divergences=(
            "the scripts' comments name a warm-up of one epoch, which is none; the code has none",
            "the cells' own classifier is the network's, as in the authors' rewritten networks",
        ),
    )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.sdd_kd(*self.cells(student, teacher), batch.labels, temperature=config.temperature)
        return Losses(task={"task": config.ce * batch.loss(student.logits)}, distill={"kd": config.kd * term})
