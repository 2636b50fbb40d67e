"""Random images of CIFAR-100's shape, as many: what a training step costs does not depend on what is in the pictures.

It does on how many there are: banks have an entry for each, and there are as many visual words as locations allow.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...common.seeding import generator
from ..images import ImageTask, Split

TRAIN, TEST = 50_000, 500


def load(root: Path, download: bool) -> tuple[Split, Split]:
    """Noise with labels drawn evenly; the same every time."""
    draws = generator(0, "synthetic")
    return _split(TRAIN, draws), _split(TEST, draws)


def _split(count: int, draws: torch.Generator) -> Split:
    images = torch.randint(0, 256, (count, 32, 32, 3), generator=draws, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 100)


TASKS = (ImageTask("synthetic", 100, load),)
"""Results on it mean nothing but their cost."""
