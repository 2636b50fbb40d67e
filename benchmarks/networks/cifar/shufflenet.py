"""CIFAR ShuffleNet V1 (Zhang et al. 2018, three groups) and V2 (Ma et al. 2018), with the field's checkpoint keys."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_methods.contract import Layout
from kd_methods.views import Chain

from ..entry import family
from ..image_classifier import ImageClassifier
from .resnet import flatten


def _conv(c_in: int, c_out: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 1, groups=groups, bias=False)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)


class UnitV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; concatenated with the pooled input where it strides."""

    def __init__(self, c_in: int, c_out: int, stride: int, groups: int) -> None:
        super().__init__()
        middle, first = c_out // 4, 1 if c_in == 24 else groups
        self.conv1, self.bn1 = _conv(c_in, middle, first), nn.BatchNorm2d(middle)
        self.shuffle = nn.ChannelShuffle(first)
        self.conv2, self.bn2 = _depthwise(middle, stride), nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = _conv(middle, c_out, groups), nn.BatchNorm2d(c_out)
        self.stride = stride

    def presum(self, x: Tensor) -> Tensor:
        out = self.shuffle(F.relu(self.bn1(self.conv1(x)), inplace=True))
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1) if self.stride == 2 else out + x

    def finish(self, presum: Tensor) -> Tensor:
        return F.relu(presum)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.presum(x))


class UnitV2(nn.Module):
    """Half of the channels pass through, the other half see 1x1, depthwise 3x3, 1x1; then a shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.bn1 = _conv(half, half), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = _depthwise(half, 1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _conv(half, half), nn.BatchNorm2d(half)
        self.shuffle = nn.ChannelShuffle(2)

    def presum(self, x: Tensor) -> Tensor:
        passed, x = x.chunk(2, 1)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.bn3(self.conv3(self.bn2(self.conv2(x))))
        return torch.cat([passed, x], 1)

    def finish(self, presum: Tensor) -> Tensor:
        # The half that passed through is non-negative already, so one ReLU over both is the same.
        return self.shuffle(F.relu(presum))

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.presum(x))


class DownV2(nn.Module):
    """Halves the resolution in two branches over all channels."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        half = c_out // 2
        self.conv1, self.bn1 = _depthwise(c_in, 2), nn.BatchNorm2d(c_in)
        self.conv2, self.bn2 = _conv(c_in, half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _conv(c_in, half), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = _depthwise(half, 2), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = _conv(half, half), nn.BatchNorm2d(half)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return self.shuffle(F.relu(torch.cat([left, right], 1)))


class ShuffleNet(ImageClassifier):
    """A 1x1 stem of 24 channels, three stages that each halve the resolution, pooling, classifier."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 24), nn.BatchNorm2d(24)
        c_in = 24
        for i, (width, depth) in enumerate(zip(widths, depths, strict=False)):
            self.add_module(f"layer{i + 1}", nn.Sequential(*self._stage(c_in, width, depth)))
            c_in = width
        c_in = self._add_head(c_in, widths)
        self.linear = nn.Linear(c_in, num_classes)

    def _stage(self, c_in: int, width: int, depth: int) -> list[nn.Module]:
        # The striding unit concatenates its input, so it only has to compute the remaining channels.
        units: list[nn.Module] = [UnitV1(c_in, width - c_in, 2, 3)]
        return units + [UnitV1(width, width, 1, 3) for _ in range(depth - 1)]

    def _add_head(self, c_in: int, widths: tuple[int, ...]) -> int:
        return c_in

    def _stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)), inplace=True)

    def _head_units(self) -> list:
        return []

    def chain(self) -> Chain:
        units: list = [("stem", self._stem)]
        ends = []
        for stage in ("layer1", "layer2", "layer3"):
            *inner, last = getattr(self, stage).named_children()
            units += [(f"{stage}.{name}", unit) for name, unit in inner]
            end = f"{stage}.{last[0]}"
            units += [(f"{end}.sum", last[1].presum), (end, last[1].finish)]
            ends.append(end)
        head = self._head_units()
        last_map = head[-1][0] if head else ends[-1]
        units += [*head, ("pool", partial(F.adaptive_avg_pool2d, output_size=1)), ("flatten", flatten)]
        units += [("linear", self.linear)]
        rectified = [n for n, _ in units if n in ("stem", "conv2") or ("layer" in n and not n.endswith(".sum"))]
        layout = Layout(
            stem="stem",
            stages=tuple(ends),
            preacts=tuple(f"{end}.sum" for end in ends),
            blocks=(*ends[:-1], last_map),
            last_map=last_map,
            pooled="flatten",
            rectified=frozenset(rectified),
            layers=(*rectified, "flatten"),
        )
        return Chain(tuple(units), layout)


class ShuffleNetV2(ShuffleNet):
    """As V1, with a 1x1 convolution before the pooling."""

    def _stage(self, c_in: int, width: int, depth: int) -> list[nn.Module]:
        return [DownV2(c_in, width), *(UnitV2(width) for _ in range(depth))]

    def _add_head(self, c_in: int, widths: tuple[int, ...]) -> int:
        self.conv2, self.bn2 = _conv(c_in, widths[-1]), nn.BatchNorm2d(widths[-1])
        return widths[-1]

    def _head(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(x)), inplace=True)

    def _head_units(self) -> list:
        return [("conv2", self._head)]


NETWORKS = family(
    {
        "ShuffleV1": partial(ShuffleNet, (240, 480, 960), (4, 8, 4)),
        "ShuffleV2": partial(ShuffleNetV2, (116, 232, 464, 1024), (3, 7, 3)),
        "ShuffleV2x1.5": partial(ShuffleNetV2, (176, 352, 704, 1024), (3, 7, 3)),
        "ShuffleV2x0.5": partial(ShuffleNetV2, (48, 96, 192, 1024), (3, 7, 3)),
    }
)
