"""MobileNetV1 for ImageNet, Howard et al. 2017: depthwise and pointwise convolutions, each with batch-norm and ReLU.

State dicts have the keys of the checkpoints that the field shares (mdistiller ``models/imagenet/mobilenetv1.py``).
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import nn

from kd_methods.contract import Layout
from kd_methods.views import Chain, in_turn

from ..entry import family
from ..image_classifier import ImageClassifier
from .resnet import flatten

# Channels and stride of the separable convolutions; the last ones of a resolution end a stage.
SEPARABLE = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1),
)  # fmt: skip
STAGES = (3, 5, 11, 13)


def _convolution(c_in: int, c_out: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]


def _separable(c_in: int, c_out: int, stride: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False)
    pointwise = nn.Conv2d(c_in, c_out, 1, bias=False)
    return [
        depthwise, nn.BatchNorm2d(c_in), nn.ReLU(inplace=True), pointwise, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True),
    ]  # fmt: skip


class MobileNetV1(ImageClassifier):
    """Fourteen convolutions, global average pooling, classifier; PyTorch's own initialisation."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = (32, *(width for width, _ in SEPARABLE))
        blocks = [_separable(widths[i], width, stride) for i, (width, stride) in enumerate(SEPARABLE)]
        self.model = nn.Sequential(*(nn.Sequential(*layers) for layers in (_convolution(3, 32, 2), *blocks)))
        self.fc = nn.Linear(widths[-1], num_classes)

    def chain(self) -> Chain:
        units: list = []
        for i, block in enumerate(self.model):
            if i in STAGES:  # in two units: methods may match what comes before the last ReLU
                units += [(f"model.{i}.bn", in_turn(*list(block.children())[:-1])), (f"model.{i}", F.relu)]
            else:
                units.append((f"model.{i}", block))
        units += [("pool", partial(F.adaptive_avg_pool2d, output_size=1)), ("flatten", flatten), ("fc", self.fc)]
        stages = tuple(f"model.{i}" for i in STAGES)
        blocks = tuple(f"model.{i}" for i in range(len(self.model)))
        layout = Layout(
            stem="model.0",
            stages=stages,
            preacts=tuple(f"{stage}.bn" for stage in stages),
            blocks=stages,
            last_map=stages[-1],
            pooled="flatten",
            rectified=frozenset(blocks),
            layers=(*blocks, "flatten"),
        )
        return Chain(tuple(units), layout)


NETWORKS = family({"MobileNetV1": MobileNetV1})
