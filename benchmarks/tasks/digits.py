"""scikit-learn's 1,797 hand-written digits: real images that ship with a library, so a demo needs no download."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from ..common.seeding import generator
from .images import ImageTask, Split

TEST_IMAGES = 360
SIZE = 16


def load(root: Path, download: bool, size: int = SIZE) -> tuple[Split, Split]:
    """8x8 grey values 0…16, enlarged to RGB bytes of that size; 1,437 for training and 360 for testing, split once."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)
    images = images.repeat_interleave(size // 8, 1).repeat_interleave(size // 8, 2)
    images = images[..., None].expand(-1, -1, -1, 3).contiguous()
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels), generator=generator(0, "digits", "split"))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Split(images[train], labels[train]), Split(images[test], labels[test])


TASKS = (ImageTask("digits", 10, load, size=SIZE), ImageTask("digits32", 10, partial(load, size=32)))
