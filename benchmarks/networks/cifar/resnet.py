"""CIFAR ResNets: He et al. 2016 (resnet8 … resnet110, the wide x4 variants) and ImageNet-style ResNets.

State dicts have the keys of the checkpoints that the field shares (RepDistiller, mdistiller).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kd_methods.contract import Layout
from kd_methods.views import Chain

from ..entry import family
from ..image_classifier import ImageClassifier


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; ``shortcut_name`` is the key the checkpoints use for the projection."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int, shortcut_name: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.add_module(shortcut_name, _projection(c_in, width, stride))
        self.shortcut_name = shortcut_name

    def presum(self, x: Tensor) -> Tensor:
        """The block up to the sum, before the last ReLU."""
        out = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + getattr(self, self.shortcut_name)(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.presum(x))


class Bottleneck(BasicBlock):
    """1x1, 3x3, 1x1 with four times the width at its output."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int, shortcut_name: str) -> None:
        nn.Module.__init__(self)
        c_out = width * self.expansion
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.add_module(shortcut_name, _projection(c_in, c_out, stride))
        self.shortcut_name = shortcut_name

    def presum(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + getattr(self, self.shortcut_name)(x)


def _projection(c_in: int, c_out: int, stride: int) -> nn.Module:
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


@dataclass(frozen=True)
class ResNetForm:
    """What tells the residual networks apart.

    block           residual block class
    depths, widths  blocks per stage and base width per stage
    stem_width      channels of the 3x3 stem
    head, shortcut  names of the classifier and of the projections in the checkpoints
    zero_last       residual blocks start as their shortcuts, with a last batch-norm of weight zero
    pooled_stem     a max-pooling that halves the resolution ends the stem
    """

    block: type[BasicBlock]
    depths: Sequence[int]
    widths: Sequence[int]
    stem_width: int
    head: str
    shortcut: str
    zero_last: bool = False
    pooled_stem: bool = False


class ResNet(ImageClassifier):
    """Stem, stages ``layer1 … layerN`` (all but the first halve the resolution), global average pooling, classifier."""

    def __init__(self, form: ResNetForm, num_classes: int) -> None:
        super().__init__()
        block = form.block
        self.pooled_stem = form.pooled_stem
        self.conv1 = nn.Conv2d(3, form.stem_width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(form.stem_width)
        c_in = form.stem_width
        self.stage_names = tuple(f"layer{i + 1}" for i in range(len(form.depths)))
        for i, (name, depth, width) in enumerate(zip(self.stage_names, form.depths, form.widths, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(block(c_in, width, 2 if i > 0 and j == 0 else 1, form.shortcut))
                c_in = width * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.add_module(form.head, nn.Linear(c_in, num_classes))
        self.head = form.head
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            elif form.zero_last and type(m) is BasicBlock:
                nn.init.zeros_(m.bn2.weight)

    def _stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)), inplace=True)

    def chain(self) -> Chain:
        units: list = [("stem", self._stem)]
        units += [("stem.pool", partial(F.max_pool2d, kernel_size=3, stride=2, padding=1))] if self.pooled_stem else []
        entry = units[-1][0]
        ends = []
        for stage in self.stage_names:
            *inner, last = getattr(self, stage).named_children()
            units += [(f"{stage}.{name}", block) for name, block in inner]
            end = f"{stage}.{last[0]}"
            # The last block in two units: methods may match the sum before its ReLU.
            units += [(f"{end}.sum", last[1].presum), (end, F.relu)]
            ends.append(end)
        units += [("pool", partial(F.adaptive_avg_pool2d, output_size=1)), ("flatten", flatten)]
        units += [(self.head, getattr(self, self.head))]
        stages = tuple(ends)
        blocks = ("stem", *(n for n, _ in units if n.startswith("layer") and not n.endswith(".sum")))
        layout = Layout(
            stem=entry,
            stages=stages,
            preacts=tuple(f"{end}.sum" for end in ends),
            blocks=stages,
            last_map=stages[-1],
            pooled="flatten",
            rectified=frozenset((*blocks, entry)),
            layers=(*blocks, "flatten"),
        )
        return Chain(tuple(units), layout)


def flatten(x: Tensor) -> Tensor:
    """(B, ...) to (B, D)."""
    return x.flatten(1)


def _cifar(depth: int, widths: tuple[int, int, int, int], num_classes: int) -> ResNet:
    n = (depth - 2) // 6
    return ResNet(ResNetForm(BasicBlock, (n, n, n), widths[1:], widths[0], "fc", "downsample"), num_classes)


def _imagenet_style(
    block: type[BasicBlock],
    depths: tuple[int, ...],
    num_classes: int,
    zero_last: bool = False,
    pooled_stem: bool = False,
) -> ResNet:
    form = ResNetForm(block, depths, (64, 128, 256, 512), 64, "linear", "shortcut", zero_last, pooled_stem)
    return ResNet(form, num_classes)


NETWORKS = family(
    {
        **{f"resnet{d}": partial(_cifar, d, (16, 16, 32, 64)) for d in (8, 14, 20, 32, 44, 56, 110)},
        "resnet20w29": partial(_cifar, 20, (29, 29, 58, 117)),  # as many parameters as resnet20 with letKD-2's layers
        **{f"resnet{d}x4": partial(_cifar, d, (32, 64, 128, 256)) for d in (8, 32)},
        "ResNet18": partial(_imagenet_style, BasicBlock, (2, 2, 2, 2)),
        # As arXiv 2511.14981 has them, for images of 32x32 and of 64x64.
        "ResNet9": partial(_imagenet_style, BasicBlock, (1, 1, 1, 1), zero_last=True),
        "ResNet34": partial(_imagenet_style, BasicBlock, (3, 4, 6, 3), zero_last=True),
        "ResNet9_64": partial(_imagenet_style, BasicBlock, (1, 1, 1, 1), zero_last=True, pooled_stem=True),
        "ResNet34_64": partial(_imagenet_style, BasicBlock, (3, 4, 6, 3), zero_last=True, pooled_stem=True),
        "ResNet50": partial(_imagenet_style, Bottleneck, (3, 4, 6, 3)),
    },
    titles={"resnet20w29": "ResNet-20, wider", "ResNet9_64": "ResNet-9", "ResNet34_64": "ResNet-34"},
    sides={"ResNet9_64": 64, "ResNet34_64": 64},
)
