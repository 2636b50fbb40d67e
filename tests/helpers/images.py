"""Random images as a data set, and a protocol for them."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.config.protocol import Protocol
from benchmarks.tasks.images import ImageData, Split

CPU = torch.device("cpu")

CLASSES = 7


def images_of(count: int, side: int = 8, seed: int = 0) -> Split:
    """Random images without a single black pixel, so that padding can be told from content."""
    draws = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (count, side, side, 3), generator=draws).to(torch.uint8)
    return Split(images, torch.randint(0, CLASSES, (count,), generator=draws))


def protocol(**changes: Any) -> Protocol:
    base = {
        "name": "test",
        "version": 1,
        "task": "test",
        "epochs": 2,
        "batch_size": 16,
        "optimizer": {"lr": 0.1},
        "mean": (0.3, 0.4, 0.5),
        "std": (0.1, 0.2, 0.3),
    }
    return Protocol.model_validate({**base, **changes})


def data_of(train: int = 50, test: int = 20, **changes: Any) -> ImageData:
    return ImageData(images_of(train), images_of(test, seed=1), CLASSES, protocol(**changes), CPU)
