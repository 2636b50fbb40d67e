"""Mixup and CutMix: images of a batch mixed in pairs, and their labels in the same shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...config.recipe import Mixing


@dataclass(frozen=True)
class Mix:
    """How the images of one batch are mixed, each with the one as far from the end as it is from the start.

    share  of an image that is its own
    box    rows and columns (top, bottom, left, right) that come from the other image; None where pixels are averaged
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    def images(self, images: Tensor) -> Tensor:
        """(B, H, W, C) integers to the same: an average is rounded to whole grey levels."""
        others = images.flip(0)
        if self.box is None:
            return (images * self.share + others * (1 - self.share)).round().to(images.dtype)
        top, bottom, left, right = self.box
        mixed = images.clone()
        mixed[:, top:bottom, left:right] = others[:, top:bottom, left:right]
        return mixed

    def larger(self, values: Tensor) -> Tensor:
        """Of values (B,) of the single images those of the image that has the larger share in each mixed one."""
        return values if self.share >= 0.5 else values.flip(0)

    def soft_labels(self, labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
        """Labels (B,) to the classes' shares (B, K), of which a part is spread over all classes by the smoothing."""
        single = smoothed(labels, num_classes, smoothing)
        return self.share * single + (1 - self.share) * single.flip(0)


def smoothed(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels (B,) to shares (B, K): all but ``smoothing`` on the label, and that spread over all classes."""
    single = F.one_hot(labels, num_classes).to(torch.get_default_dtype())
    return (1 - smoothing) * single + smoothing / num_classes


def draw(mixing: Mixing, size: tuple[int, int], seed: int) -> Mix:
    """How a batch of images of a size (H, W) is mixed; a function of the seed alone.

    As the ``Mixup`` of timm 1.0.31 in its mode ``batch``: CutMix's rectangle has the side sqrt(1 - share) of the image
    around any of its pixels; what lies outside is cut off, and the share becomes that of the pixels.
    """
    draws = np.random.RandomState(seed % 2**32)  # of which numpy promises the same numbers for ever
    cut = draws.random_sample() < (0.5 if mixing.mixup and mixing.cutmix else float(mixing.cutmix > 0))
    share = float(draws.beta(*(mixing.cutmix if cut else mixing.mixup,) * 2))
    if not cut:
        return Mix(share)
    rows, columns = (_span(length, int(length * (1 - share) ** 0.5), draws) for length in size)
    inside = (rows[1] - rows[0]) * (columns[1] - columns[0])
    return Mix(1 - inside / (size[0] * size[1]), (*rows, *columns))


def _span(length: int, side: int, draws: np.random.RandomState) -> tuple[int, int]:
    """Where a side around a random pixel begins and ends, within the image."""
    middle = int(draws.randint(length))
    return max(0, middle - side // 2), min(length, middle + (side + 1) // 2)
