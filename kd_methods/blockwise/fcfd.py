"""Function-consistent features, Liu et al. 2023: student and teacher continue each other's features."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..feature._maps import matched
from ..registry import register


class Bridge(nn.Module):
    """3x3 convolution and BN from one network's map to the other's; LeakyReLU where that one's part ends in a ReLU.

    Stride 2 where the source is twice as large, transposed 4x4 of stride 2 where it is half as large; other sizes are
    reached by nearest neighbours (our choice).
    """

    def __init__(self, source: tuple[int, ...], target: tuple[int, ...], rectify: bool) -> None:
        super().__init__()
        ratio = source[1] / target[1]
        if ratio == 0.5:
            conv: nn.Module = nn.ConvTranspose2d(source[0], target[0], 4, stride=2, padding=1)
        else:
            halved = ratio == 2
            conv = nn.Conv2d(source[0], target[0], 3, stride=1 + halved, padding=1, bias=halved)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.size = target[1:]
        self.body = nn.Sequential(conv, nn.BatchNorm2d(target[0]), *([nn.LeakyReLU(0.1)] if rectify else []))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return x if x.shape[2:] == self.size else F.interpolate(x, size=self.size, mode="nearest")


class Settings(MethodSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    kd: float = Field(1.0, ge=0, description="weight of the student's own KD term")
    mixed: float = Field(1.0, ge=0, description="weight of the mixed networks' KD terms")
    appearance: float = Field(5.0, ge=0, description="weight of the distances between features")
    temperature: float = Field(4.0, gt=0, description="temperature T of all KD terms")
    paths: int = Field(2, ge=0, description="mixed networks that are drawn for a batch, if there are as many")
    directions: Literal["both", "to_teacher", "to_student"] = Field("both", description="mixed networks to draw from")
    warmup: float = Field(20.0, ge=0, description="epochs over which the distances' weight grows linearly")
    teacher_bn: Literal["batch", "eval"] = Field(
        "batch", description="statistics in the teacher: the batch's, or its own"
    )


@register
class FCFD(Method[Settings]):
    """Bridges lead from each network into the other's remaining parts: what a feature does there counts."""

    card = Card(
        name="fcfd",
        version=1,
        family="blockwise",
        title="FCFD",
        paper="liu2023fcfd",
        formula=(
            "L = ce * CE(z_s, y) + kd * T^2 * KL(z_t || z_s) + mixed * sum over drawn paths T^2 * KL(z_t || z_path)"
            " + appearance * min(epoch / warmup, 1) * [sum_l sum_g MSE(g, F_t,l) + the same of the last part after ReLU"
            " and pooling], a path = parts 1..k of one network, bridge k, and the other's parts after k,"
            " g = bridge(F_s,l) and what the teacher's part l gives in paths that have changed over to it"
        ),
        source="LiuDongyang6/FCFD classification/cifar/main.py, experiments/cifar (1, 1, 1, 5, T 4; 2 paths) @2aefb7b",
        optimum="where the bridges are identities and the networks equal",
        divergences=(
            "the authors keep the whole composite in training mode: their teacher normalises by the batch, which also"
            " moves its running statistics; here it does so with its buffers left alone (teacher_bn=eval: its own"
            " statistics)",
            "as theirs, parts that run on foreign features normalise by the batch and leave the student's running"
            " statistics alone",
            "the parts are cut where the suite's blocks end, after the ReLU where there is one; the authors cut VGG,"
            " MobileNetV2 and ShuffleNetV1 before it and the last part of a WRN after its final BN",
            "networks with different numbers of blocks are matched from the last block backwards (our choice)",
            "the authors train with Nesterov momentum, the recipe here is without",
        ),
        batch="global",
    )
    needs = Needs(student=("blocks",), teacher=("blocks", "logits"), min_batch=2)

    def setup(self) -> None:
        shapes = matched("fcfd", self.student, self.teacher, "blocks")
        n = len(shapes)
        layouts = self.student.layout, self.teacher.layout
        self.student_blocks, self.teacher_blocks = (layout.blocks[-n:] for layout in layouts)
        rectified = [[unit in layout.rectified for unit in layout.blocks[-n:]] for layout in layouts]
        self.to_teacher = nn.ModuleList(Bridge(s, t, ends) for (s, t), ends in zip(shapes, rectified[1], strict=True))
        # Behind the last part there is nothing of the student to go on with.
        self.to_student = nn.ModuleList(
            Bridge(t, s, ends) for (s, t), ends in zip(shapes[:-1], rectified[0][:-1], strict=True)
        )
        both = ("to_teacher", "to_student") if self.settings.directions == "both" else (self.settings.directions,)
        self.candidates = [(direction, k) for direction in both for k in range(n - 1)]
        if self.settings.directions == "to_teacher" or not self.settings.paths:
            self.to_student = nn.ModuleList()
        if self.settings.teacher_bn == "batch":
            self.needs = replace(self.needs, teacher=())

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config, n = self.settings, len(self.teacher_blocks)
        by_batch = config.teacher_bn == "batch"
        if by_batch:
            with torch.no_grad(), self.teacher.batch_statistics():
                teacher = self.teacher(batch.teacher_inputs, at=self.teacher_blocks, fields=())
        targets = [teacher[unit] for unit in self.teacher_blocks]
        bridged = [bridge(student[unit]) for bridge, unit in zip(self.to_teacher, self.student_blocks, strict=True)]
        reached = [[g] for g in bridged]
        tail = self.teacher if by_batch else self.teacher.fold_batch_norms()
        mixed = []
        for i in torch.randperm(len(self.candidates))[: config.paths].tolist():
            direction, k = self.candidates[i]
            if direction == "to_student":
                with self.student.batch_statistics():
                    mixed.append(self.student.resume(self.student_blocks[k], self.to_student[k](targets[k])))
                continue
            with self.teacher.batch_statistics() if by_batch else nullcontext():
                feature = bridged[k]
                for block in range(k + 1, n):
                    feature = tail.resume(self.teacher_blocks[block - 1], feature, until=self.teacher_blocks[block])
                    reached[block].append(feature)
                mixed.append(tail.resume(self.teacher_blocks[-1], feature))
        of_student, *of_paths = (
            functional.kd(z, teacher.logits, temperature=config.temperature) for z in (student.logits, *mixed)
        )
        distances = functional.appearance_consistency(reached, targets)
        distill = {"kd": config.kd * of_student}
        if of_paths:
            distill["mixed"] = config.mixed * torch.stack(of_paths).sum()
        distill["appearance"] = config.appearance * progress.ramp(config.warmup) * distances
        return Losses(task={"task": config.ce * batch.loss(student.logits)}, distill=distill)
