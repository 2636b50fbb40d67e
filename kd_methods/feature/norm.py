"""N-to-one representation matching, Liu et al. 2023."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..errors import UserError
from ..functional.feature import smaller_size
from ..registry import register


class Expand(nn.Sequential):
    """1x1 convolution and BN; gives its input and its output side by side along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, super().forward(x)], 1)


class Project(nn.Sequential):
    """Takes what ``Expand`` gave back to the input's width by 1x1 convolution and BN, and adds the input."""

    def __init__(self, width: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.width] + super().forward(x[:, self.width :])


class Settings(MethodSettings):
    beta: float = Field(1.0, ge=0, description="weight b of the matching term")
    task: float = Field(0.1, ge=0, description="weight r of the task loss")
    copies: int = Field(8, ge=1, description="number N of representations")
    schedule: Literal["authors", "imagenet", "constant"] = Field(
        "authors",
        description="factor on b: 0.1, 0.5, 1, 0.5, 0.1 from epochs 1, 10, 20, 180, 210 of 240; on ImageNet 0.1, 0.5,"
        " 0.9, 0.5, 0.1 from epochs 1, 5, 15, 60, 80 of 100; or 1",
    )


@register
class NORM(Method[Settings]):
    """Expands the student's last map to N representations that each match the teacher's, within a linear residual."""

    card = Card(
        name="norm",
        version=3,
        family="feature",
        title="NORM",
        paper="liu2023norm",
        formula="L = r * CE(z_s, y) + b(epoch) * N * MSE(E(F_s), [F_t repeated N times])",
        source="authors' models/cifar/resnet_student.py, helper/loops.py; README example (N 8, r 0.1, b 1)",
        optimum="where the expanded student map equals N copies of the teacher's",
        divergences=(
            "the authors' code standardises the student's logits over the classes and scales them by 2.5 before CE"
            " and at test; here the logits are plain",
            "the default r is the README's for resnet32x4 to resnet8x4; the authors' script for resnet110 to resnet32"
            " tries 0.0625, 0.125, 0.25 and 0.5; that for ImageNet has a cosine learning rate, not the protocol's",
            "where BN and ReLU follow the last stage (WideResNets) maps are those before them, as in the authors' code",
            "the module is linear at inference and could be folded into one 1x1 convolution; it is deployed unfolded",
            "the authors' ShuffleNet students add the input image to the expanded map by mistake, which cannot run;"
            " here the last map is added to the projected one, as in their other networks",
            "the authors' MobileNetV2 student has no ReLU after its first and its last convolution; here it has both",
            "both convolutions start by Kaiming's rule, as most of the authors' students; their ShuffleNets and"
            " MobileNetV1 have PyTorch's default",
        ),
    )
    needs = Needs(student_units=("norm_expand",), teacher=("last_map",), min_batch=2)

    def setup(self) -> None:
        self.student_unit, self.teacher_unit = _last(self.student), _last(self.teacher)
        if self.teacher_unit != self.teacher.layout.last_map:
            self.needs = Needs(student_units=("norm_expand",), teacher_units=(self.teacher_unit,), min_batch=2)
        shapes = self.student.shape(self.student_unit), self.teacher.shapes("last_map")[0]
        if any(len(shape) != 3 for shape in shapes):
            raise UserError("method 'norm' needs last maps (C, H, W); use another method for this pair")
        self.width, wide = shapes[0][0], shapes[1][0] * self.settings.copies
        self.expand = Expand(nn.Conv2d(self.width, wide, 1, bias=False), nn.BatchNorm2d(wide))
        self.project = Project(self.width, nn.Conv2d(wide, self.width, 1, bias=False), nn.BatchNorm2d(self.width))
        for layer in (self.expand, self.project):
            nn.init.kaiming_normal_(next(layer.parameters()), mode="fan_out", nonlinearity="relu")

    def adapt(self, student: Network) -> Network:
        student = student.insert(self.student_unit, "norm_expand", self.expand)
        return student.insert("norm_expand", "norm_project", self.project)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config, expanded = self.settings, student["norm_expand"][:, self.width :]
        target = teacher[self.teacher_unit] if self.needs.teacher_units else teacher.last_map
        size = smaller_size(expanded.shape, target.shape)
        expanded, target = (F.adaptive_max_pool2d(x, size) for x in (expanded, target))
        term = config.copies * functional.hint(expanded, target.repeat(1, config.copies, 1, 1))
        return Losses(
            task={"task": config.task * batch.loss(student.logits)},
            distill={"matching": config.beta * self._factor(progress) * term},
        )

    def _factor(self, progress: Progress) -> float:
        if self.settings.schedule == "constant":
            return 1.0
        epochs, steps = SCHEDULES[self.settings.schedule]
        scale = epochs / progress.epochs
        return progress.mean(lambda epoch: next(factor for end, factor in steps if scale * epoch < end))


SCHEDULES = {
    "authors": (240, ((10, 0.1), (20, 0.5), (180, 1.0), (210, 0.5), (math.inf, 0.1))),
    "imagenet": (100, ((5, 0.1), (15, 0.5), (60, 0.9), (80, 0.5), (math.inf, 0.1))),
}
"""The authors' epochs, and until which of them b has which factor."""


def _last(network: Network) -> str:
    """The last map, before the BN and ReLU that a network may have behind its last stage."""
    stage, last = network.layout.stages[-1], network.layout.last_map
    return stage if len(network.shape(stage)) == 3 and network.shape(stage) == network.shape(last) else last
