"""Cross-layer distillation with semantic calibration, Chen et al. 2021."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..functional._precision import full_precision, unit
from ..functional.feature import same_size
from ..registry import register
from ._connectors import three_layers
from ._maps import matched


class Embedding(nn.Sequential):
    """Maps rows of a batch's Gram matrix to unit vectors that queries and keys are compared by."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(nn.Linear(rows, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """In fp32 under any autocast: products of whole feature maps are beyond the largest number of fp16."""
        with torch.autocast(x.device.type, enabled=False):
            return unit(super().forward(x))


@full_precision
def gram_rows(x: Tensor, width: int) -> Tensor:
    """Rows of the Gram matrix of a batch (B, ...), filled with zeros up to ``width``."""
    flat = x.flatten(1)
    return F.pad(flat @ flat.t(), (0, width - len(x)))


@full_precision
def calibrated(attention: Tensor, distances: Tensor) -> Tensor:
    """Sum over teacher stages of attention * distance, mean over samples and student stages; both (B, S, T)."""
    return (attention * distances).sum(2).mean()


@full_precision
def row_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference per sample (B)."""
    return (student - teacher.detach()).pow(2).flatten(1).mean(1)


class Settings(MethodSettings):
    beta: float = Field(400.0, ge=0, description="weight of the feature term")
    kd: float = Field(1.0, ge=0, description="weight of the KD term")
    temperature: float = Field(4.0, gt=0, description="temperature of the KD term")
    soft: float = Field(1.0, gt=0, description="divisor of the attention's scores")
    factor: int = Field(4, ge=1, description="batch size over the width of queries and keys")
    batch_size: int = Field(64, ge=2, description="largest batch; queries and keys are built for it")


@register
class SemCKD(Method[Settings]):
    """Matches every student stage with all teacher stages, weighted by a learned attention."""

    card = Card(
        name="semckd",
        version=2,
        family="feature",
        title="SemCKD",
        paper="chen2021semckd",
        formula=(
            "L = CE(z_s, y) + kd * KD(z_s, z_t; T) + beta * mean_s sum_t a_st MSE(proj_st(F_s), F_t),"
            " a = softmax_t of query_s . key_t, both learned from rows of the batch's Gram matrices"
        ),
        source="SimKD toolbox models/util.py (SelfA, factor 4), train_student.py (soft 1), scripts (1, 1, beta 400)",
        optimum="where the projected student maps equal the teacher's and the logits agree",
        order="its attention reads rows of the Gram matrix in batch order",
        divergences=(
            "queries and keys read a Gram row as wide as the batch, so the loss depends on the order of the samples",
            "smaller batches are padded with zeros to the setting batch_size (the authors leave them out)",
        ),
        batch="global",
    )
    needs = Needs(student=("stages",), teacher=("stages", "logits"), min_batch=2)

    def setup(self) -> None:
        matched("semckd", self.student, self.teacher)
        rows = self.settings.batch_size
        self.needs = replace(self.needs, max_batch=rows)
        width = max(1, rows // self.settings.factor)
        student_shapes, teacher_shapes = self.student.shapes("stages"), self.teacher.shapes("stages")
        self.queries = nn.ModuleList(Embedding(rows, width) for _ in student_shapes)
        self.keys = nn.ModuleList(Embedding(rows, width) for _ in teacher_shapes)
        self.projections = nn.ModuleList(
            nn.ModuleList(three_layers(s[0], t[0]) for t in teacher_shapes) for s in student_shapes
        )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        queries, keys = (
            torch.stack([embed(gram_rows(x, config.batch_size)) for embed, x in zip(embeds, maps, strict=True)], 1)
            for embeds, maps in ((self.queries, student.stages), (self.keys, teacher.stages))
        )
        attention = torch.softmax(torch.einsum("bsd,btd->bst", queries, keys).float() / config.soft, 2)
        distances = [
            torch.stack([_distance(projection, s, t) for projection, t in zip(row, teacher.stages, strict=True)], 1)
            for row, s in zip(map(_children, self.projections), student.stages, strict=True)
        ]
        kd = functional.kd(student.logits, teacher.logits, temperature=config.temperature)
        return Losses(
            task={"task": batch.loss(student.logits)},
            distill={
                "kd": config.kd * kd,
                "feature": config.beta * calibrated(attention, torch.stack(distances, 1)),
            },
        )


def _children(module: nn.Module) -> list[nn.Module]:
    return list(module.children())


def _distance(projection: nn.Module, s: Tensor, t: Tensor) -> Tensor:
    s, t = same_size(s, t)
    return row_mse(projection(s), t)
