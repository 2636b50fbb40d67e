"""CIFAR wide residual networks (Zagoruyko & Komodakis 2016), with the field's checkpoint keys."""

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


class Block(nn.Module):
    """Pre-activation block. Where the width changes, the shortcut sees the activated input, else the raw one."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if c_in != c_out else None

    def after_bn1(self, normalised: Tensor) -> Tensor:
        """The rest of a width-changing block, from the output of its first batch-norm."""
        assert self.convShortcut is not None
        x = F.relu(normalised)
        return self._body(x) + self.convShortcut(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.convShortcut is not None:
            return self.after_bn1(self.bn1(x))
        return x + self._body(F.relu(self.bn1(x), inplace=True))

    def _body(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.bn2(self.conv1(x)), inplace=True))


class Stage(nn.Module):
    """Blocks under the key ``layer``, as in the checkpoints."""

    def __init__(self, depth: int, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(Block(c_in if i == 0 else c_out, c_out, stride if i == 0 else 1) for i in range(depth))
        )


class WideResNet(ImageClassifier):
    """WRN-depth-widen: signed stage outputs, a final batch-norm and ReLU before the pooling."""

    def __init__(self, depth: int, widen: int, num_classes: int) -> None:
        super().__init__()
        n, widths = (depth - 4) // 6, (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(n, widths[0], widths[1], 1)
        self.block2 = Stage(n, widths[1], widths[2], 2)
        self.block3 = Stage(n, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, 0, math.sqrt(2.0 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)))
        nn.init.zeros_(self.fc.bias)

    def chain(self) -> Chain:
        units: list = [("conv1", self.conv1)]
        stages: list[str] = []
        preacts: list[str] = []
        for name in ("block1", "block2", "block3"):
            for i, block in getattr(self, name).layer.named_children():
                unit = f"{name}.{i}"
                if stages and i == "0":
                    # The batch-norm that opens a stage is a unit of its own: it gives the previous stage's
                    # pre-activation. Stages 2 and 3 always change the width, so nothing else reads its input.
                    preacts.append(f"{unit}.bn1")
                    units += [(f"{unit}.bn1", block.bn1), (unit, block.after_bn1)]
                else:
                    units.append((unit, block))
            stages.append(unit)
        units += [("bn1", self.bn1), ("relu", F.relu), ("pool", partial(F.adaptive_avg_pool2d, output_size=1))]
        units += [("flatten", flatten), ("fc", self.fc)]
        layout = Layout(
            stem="conv1",
            stages=tuple(stages),
            preacts=(*preacts, "bn1"),
            blocks=tuple(stages),
            last_map="relu",
            pooled="flatten",
            rectified=frozenset({"relu"}),
            layers=(*(n for n, _ in units if n.startswith("block") and not n.endswith(".bn1")), "relu", "flatten"),
        )
        return Chain(tuple(units), layout)


NETWORKS = family({f"wrn_{d}_{w}": partial(WideResNet, d, w) for d, w in ((16, 1), (16, 2), (40, 1), (40, 2))})
