"""CIFAR VGGs with batch-norm (Simonyan & Zisserman 2015), with the field's checkpoint keys."""

from __future__ import annotations

import math
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kd_methods.contract import Layout
from kd_methods.views import Chain, in_turn

from ..entry import family
from ..image_classifier import ImageClassifier
from .resnet import flatten

DEPTHS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


class PoolLarge(nn.Module):
    """Max pooling of maps of ``least`` positions a side and more; smaller ones stay as they are."""

    fx_leaf = True

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2) if x.shape[-1] >= self.least else x


class VGG(ImageClassifier):
    """Five blocks of 3x3 conv-BN-ReLU with 2x2 max pooling between them, global average pooling, one linear layer."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        c_in = 3
        for i, (repeats, width) in enumerate(zip(DEPTHS[depth], WIDTHS, strict=True)):
            layers: list[nn.Module] = []
            for _ in range(repeats):
                layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                c_in = width
            self.add_module(f"block{i}", nn.Sequential(*layers[:-1]))
        self.pool3 = PoolLarge(8)  # there for 64x64 inputs, left out for 32x32
        self.classifier = nn.Linear(c_in, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, 0, math.sqrt(2.0 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)))
                assert m.bias is not None
                nn.init.zeros_(m.bias)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def chain(self) -> Chain:
        units: list = []
        for i in range(5):
            block = getattr(self, f"block{i}")
            *inner, last = range(0, len(block), 3)  # convolution, batch-norm, ReLU; the last ReLU is not in there
            units += [(f"block{i}.{j}", in_turn(*block[j : j + 3])) for j in inner]
            units += [(f"block{i}.conv", in_turn(*block[last:])), (f"block{i}", F.relu)]
            units += [(f"pool{i}", self.pool3 if i == 3 else partial(F.max_pool2d, kernel_size=2))] if i < 4 else []
        rectified = [n for n, _ in units if n.startswith("block") and not n.endswith(".conv")]
        units += [("pool4", partial(F.adaptive_avg_pool2d, output_size=1)), ("flatten", flatten)]
        units += [("classifier", self.classifier)]
        stages = tuple(f"block{i}" for i in range(1, 5))
        layout = Layout(
            stem="block0",
            stages=stages,
            preacts=tuple(f"{stage}.conv" for stage in stages),
            blocks=stages,
            last_map="block4",
            pooled="flatten",
            rectified=frozenset(rectified),
            layers=(*rectified, "flatten"),
        )
        return Chain(tuple(units), layout)


NETWORKS = family({f"vgg{depth}": partial(VGG, depth) for depth in DEPTHS})
