"""A teacher's pass over some of the digits, from which methods are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.config.protocol import load_protocol
from benchmarks.tasks.data_sets import digits
from benchmarks.tasks.images import ImageData, Split
from benchmarks.training.teacher_pass import StoredTeacherPass

UNIT = "layer3.0"
"""Of a resnet8: its only block with maps of the last size."""


def some_digits() -> ImageData:
    """600 of the digits for training."""
    train, test = digits.load(Path(), False)
    return ImageData(Split(train.images[:600], train.labels[:600]), test, 10, load_protocol("digits-demo"),
                     torch.device("cpu"))  # fmt: skip


def teacher_pass_of(data: ImageData, folder: Path, seed: int = 0, **options: Any) -> StoredTeacherPass:
    """Of a resnet8 with random weights; what it prepares lies in the folder."""
    torch.manual_seed(seed)
    network = data.build("resnet8").requires_grad_(False).eval()
    identity = {"teacher": {"network": "resnet8", "seed": seed}}
    options = {"say": lambda line: None, **options}
    return StoredTeacherPass(network, ((0.3,) * 3, (0.3,) * 3), data, identity, folder, **options)
