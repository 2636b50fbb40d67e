"""Block-wise logit distillation for detectors, Yu et al. 2024 (arXiv 2411.01547), as far as it can be inferred."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import (
    Batch,
    Card,
    Losses,
    Method,
    MethodSettings,
    Needs,
    Network,
    Outputs,
    Progress,
    Pyramid,
)
from ..registry import register
from ._levels import channels


class Settings(MethodSettings):
    alpha: float = Field(1.0, ge=0, description="weight of the task losses of student and stone")
    beta: float = Field(1.0, ge=0, description="weight of the distances to the teacher")
    gamma: float = Field(1.0, ge=0, description="weight of the student's distance to the stone")
    stone_task: float = Field(1.0, ge=0, description="factor on the stone's task loss")
    temperature: float = Field(1.0, gt=0, description="temperature of all distances")


@register
class PyramidBlockKD(Method[Settings]):
    """Trains the student's backbone and pyramid through the frozen teacher's region heads."""

    card = Card(
        name="block_kd.fpn",
        version=1,
        family="blockwise",
        title="Block-KD",
        paper="yu2024blockkd",
        formula=(
            "L = alpha * [task + task(N)] + beta * [KL(S, T) + KL(N, T)] + gamma * KL(S, N),"
            " N = teacher's region heads on the student's pyramid through a 3x3 connector per level"
        ),
        source="arXiv 2411.01547 says that COCO is used and no more; the place of the stone is that of FCFD",
        optimum="where the student and the stepping stone give the teacher's region logits",
        divergences=(
            "everything but the losses is our reading: one stone, after the pyramid; its task loss is that of the"
            " regions (classes and boxes); with one stone the ensemble is the stone itself, detached",
        ),
        our_choice=("alpha", "beta", "gamma", "stone_task", "temperature"),
        waits="the heads' regions are sorted by level, as in mmdetection",
        modality="detection",
    )
    needs = Needs(student_units=("pyramid",), teacher=("logits",), min_batch=2)

    def setup(self) -> None:
        self.connectors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(s, t, 3, padding=1, bias=False), nn.BatchNorm2d(t))
            for (s, *_), (t, *_) in self._read(self.student)
        )

    def _read(self, student: Network) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Shapes of the student's and the teacher's levels that region heads read."""
        channels("block_kd.fpn", student, self.teacher)
        shapes: list[Any] = [network.shape("pyramid") for network in (student, self.teacher)]
        return list(zip(*shapes, strict=True))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config, pyramid = self.settings, student["pyramid"]
        maps = tuple(connect(x) for connect, x in zip(self.connectors, pyramid.maps, strict=True))
        stone = self.teacher.resume("pyramid", Pyramid(maps, pyramid.regions))

        return Losses(
            task={
                "task": config.alpha * batch.loss(student.logits),
                "stone_task": config.alpha * config.stone_task * batch.loss(stone),
            },
            distill={
                "kd": config.beta * self._distance(student.logits, teacher.logits),
                "stone_kd": config.beta * self._distance(stone.logits, teacher.logits),
                "cross": config.gamma * self._distance(student.logits, stone.logits),
            },
        )

    def _distance(self, learner: Tensor, target: Tensor) -> Tensor:
        return functional.kd(learner, target, temperature=self.settings.temperature)
