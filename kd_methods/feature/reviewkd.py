"""Knowledge review, Chen et al. 2021."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register
from ._maps import matched


class ABF(nn.Module):
    """Attention-based fusion of a student map with what the deeper stages left, and its view in the teacher's space.

    ``size`` is that of the teacher's map; None where it is the student's own.
    """

    def __init__(self, c_in: int, c_mid: int, c_out: int, size: tuple[int, ...] | None, fuse: bool) -> None:
        super().__init__()
        self.size = size
        self.reduce = nn.Sequential(nn.Conv2d(c_in, c_mid, 1, bias=False), nn.BatchNorm2d(c_mid))
        self.view = nn.Sequential(nn.Conv2d(c_mid, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out))
        self.attention = nn.Sequential(nn.Conv2d(2 * c_mid, 2, 1), nn.Sigmoid()) if fuse else None
        for layer in (self.reduce, self.view):
            nn.init.kaiming_uniform_(next(layer.parameters()), a=1)

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C_s, H_s, W_s) and the residual of the deeper stage to (B, C_t, H_t, W_t) and the next residual."""
        x = self.reduce(x)
        if self.attention is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            weights = self.attention(torch.cat([x, deeper], 1))
            x = x * weights[:, :1] + deeper * weights[:, 1:]
        if self.size and x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="nearest")
        return self.view(x), x


class Settings(MethodSettings):
    beta: float = Field(1.0, ge=0, description="weight of the review term")
    warmup: float = Field(20.0, ge=0, description="epochs over which the weight grows linearly")
    max_mid: int = Field(512, ge=1, description="largest width inside the fusions")
    student_preact: bool = Field(False, description="fuse the student's pre-activations instead of its outputs")


@register
class ReviewKD(Method[Settings]):
    """Fuses the student's stages from the last one backwards and matches each fusion with the teacher's stage."""

    card = Card(
        name="reviewkd",
        version=1,
        family="feature",
        title="ReviewKD",
        paper="chen2021reviewkd",
        formula="L = CE(z_s, y) + beta * min(epoch / warmup, 1) * sum_l HCL(ABF_l(F_s,l, ABF_l+1(...)), F_t,l)",
        source="authors' CIFAR-100/model/reviewkd.py; mdistiller engine/cfg.py (weight 1, warm-up 20)",
        optimum="where the fused student maps equal the teacher's",
        divergences=(
            "the pooled vector is the last stage and the teacher's maps are pre-activations, as in the authors' code;"
            " of a network whose ReLU cannot be told from the block that it ends, they are what comes out of it",
            "the authors' code and mdistiller always use 512 (its MAX_MID_CHANNEL is not used); here it is max_mid",
            "the authors' weights differ by pair (0.6 to 8, with training settings of their own); the default is"
            " mdistiller's, whose CIFAR-100 file for resnet32x4 to resnet8x4 has 5",
            "the authors' CIFAR-100 teacher is in training mode (statistics of the batch); here, as in mdistiller, it"
            " is in evaluation mode",
            "the warm-up counts epochs from 1, as in mdistiller (authors: from 0)",
            "networks with different numbers of stages are matched from the last stage backwards",
        ),
    )
    needs = Needs(student=("stages", "preacts", "pooled"), teacher=("preacts", "pooled"), min_batch=2)

    def setup(self) -> None:
        shapes = matched("reviewkd", self.student, self.teacher, "preacts")
        pooled = self.student.shapes("pooled")[0], self.teacher.shapes("pooled")[0]
        shapes.append(((pooled[0][0], 1, 1), (pooled[1][0], 1, 1)))
        mid = min(self.settings.max_mid, pooled[0][0])
        last = len(shapes) - 1
        self.fusions = nn.ModuleList(
            ABF(c_s, mid, c_t, tuple(size), fuse=i < last) for i, ((c_s, *_), (c_t, *size)) in enumerate(shapes)
        )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config, n = self.settings, len(self.fusions) - 1
        stages = student.preacts if config.student_preact else student.stages
        fused: list[Tensor] = []
        residual = None
        for x, fusion in zip((_map(student.pooled), *stages[: -n - 1 : -1]), reversed(self.fusions), strict=True):
            out, residual = fusion(x, residual)
            fused.insert(0, out)
        term = functional.hierarchical_context(fused, [*teacher.preacts[-n:], _map(teacher.pooled)])
        weight = config.beta * progress.ramp(config.warmup)
        return Losses(task={"task": batch.loss(student.logits)}, distill={"review": weight * term})


def _map(pooled: Tensor) -> Tensor:
    return pooled[:, :, None, None]
