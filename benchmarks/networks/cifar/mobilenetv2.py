"""CIFAR MobileNetV2 (Sandler et al. 2018) at half width, with the field's checkpoint keys."""

from __future__ import annotations

import math
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kd_methods.contract import Layout
from kd_methods.views import Chain

from ..entry import family
from ..image_classifier import ImageClassifier
from .resnet import flatten

# expansion, channels at full width, repeats, stride
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _conv_bn_relu(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]


class InvertedResidual(nn.Module):
    """Expand, depthwise 3x3, project linearly; a shortcut where shapes agree."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.conv = nn.Sequential(
            *_conv_bn_relu(c_in, hidden, 1),
            *_conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
            *_conv_bn_relu(hidden, c_out, 1)[:-1],
        )
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(ImageClassifier):
    """Stem of stride 2, seven groups of inverted residuals, a 1x1 convolution to 1280 channels, pooling, classifier.

    Stage outputs are linear bottlenecks (no ReLU), so the pre-activations are the stage outputs themselves.
    """

    def __init__(self, width: float, num_classes: int) -> None:
        super().__init__()
        c_in = int(32 * width)
        self.conv1 = nn.Sequential(*_conv_bn_relu(3, c_in, 3, 2))
        self.blocks = nn.ModuleList()
        for expansion, channels, repeats, stride in GROUPS:
            group = []
            for i in range(repeats):
                group.append(InvertedResidual(c_in, int(channels * width), stride if i == 0 else 1, expansion))
                c_in = int(channels * width)
            self.blocks.append(nn.Sequential(*group))
        self.conv2 = nn.Sequential(*_conv_bn_relu(c_in, 1280, 1))
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, 0, math.sqrt(2.0 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)))
            elif isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0, 0.01)
                nn.init.zeros_(m.bias)

    def chain(self) -> Chain:
        units: list = [("conv1", self.conv1)]
        for g, group in enumerate(self.blocks):
            units += [(f"blocks.{g}.{i}", block) for i, block in group.named_children()]  # type: ignore[operator]
        units += [("conv2", self.conv2), ("pool", partial(F.adaptive_avg_pool2d, output_size=1))]
        units += [("flatten", flatten), ("classifier", self.classifier)]
        stages = tuple(f"blocks.{g}.{GROUPS[g][2] - 1}" for g in (1, 2, 4, 6))
        layout = Layout(
            stem="conv1",
            stages=stages,
            preacts=stages,
            blocks=(*stages[:-1], "conv2"),
            last_map="conv2",
            pooled="flatten",
            rectified=frozenset({"conv1", "conv2"}),
            layers=tuple(n for n, _ in units if n not in ("pool", "classifier")),
        )
        return Chain(tuple(units), layout)


NETWORKS = family({"MobileNetV2": partial(MobileNetV2, 0.5)})
