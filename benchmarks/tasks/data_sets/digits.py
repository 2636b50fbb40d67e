"""scikit-learn's 1,797 hand-written digits: real images that ship with a library, so a demo needs no download."""

from __future__ import annotations

import gzip
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch

from ...common.seeding import generator
from ..images import ImageTask, Split

TEST_IMAGES = 360
SIZE = 16


def load(root: Path, download: bool, size: int = SIZE) -> tuple[Split, Split]:
    """8x8 grey values 0…16, enlarged to RGB bytes of that size; 1,437 for training and 360 for testing, split once."""
    # The file that load_digits reads; importing the library for it takes longer than all else that a plan needs.
    with gzip.open(str(distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")), "rt") as lines:
        digits = torch.from_numpy(np.loadtxt(lines, delimiter=","))
    images = digits[:, :-1].unflatten(1, (8, 8)).mul(255 / 16).round().to(torch.uint8)
    images = images.repeat_interleave(size // 8, 1).repeat_interleave(size // 8, 2)
    images = images[..., None].expand(-1, -1, -1, 3).contiguous()
    labels = digits[:, -1].long()
    order = torch.randperm(len(labels), generator=generator(0, "digits", "split"))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Split(images[train], labels[train]), Split(images[test], labels[test])


TASKS = (
    ImageTask("digits", 10, load, size=SIZE, usual_protocol="digits-demo"),
    ImageTask("digits32", 10, partial(load, size=32), usual_protocol="digits32-demo"),
)
