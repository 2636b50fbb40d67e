"""ImageNet's layout in small, a recipe for it, and the task opened on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.config.protocol import Protocol
from benchmarks.config.recipe import Crops, Optimizer
from benchmarks.tasks.data_sets import imagenet
from benchmarks.tasks.streamed import StreamedImages

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

WNIDS = ("n01440764", "n01443537", "n02085620")


def write_images(folder: Path, per_class: int = 4) -> Path:
    """ImageNet's layout with three of its classes; one image is grey."""
    draws = np.random.default_rng(0)
    for split, count in (("train", per_class), ("val", 2)):
        for number, name in enumerate(WNIDS):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                picture = draws.integers(0, 255, (40 + 3 * i, 50), dtype=np.uint8)
                picture = picture if (number, i) == (0, 0) else np.stack([picture] * 3, -1) // (number + 1)
                Image.fromarray(picture).save(folder / split / name / f"{i}.JPEG")
    return folder


def recipe(**changes: Any) -> Protocol:
    values: dict[str, Any] = {
        "name": "files", "version": 1, "task": "imagenet", "epochs": 2, "batch_size": 4, "flip": True,
        "optimizer": Optimizer(lr=0.05, weight_decay=1e-4), "mean": MEAN, "std": STD,
        "crops": Crops(size=32, test_resize=36, workers=2),
    }  # fmt: skip
    return Protocol(**{**values, **changes})


def opened(root: Path, **changes: Any) -> StreamedImages:
    data = imagenet.TASKS[0].open(root, recipe(**changes), torch.device("cpu"))
    assert isinstance(data, StreamedImages)
    return data
