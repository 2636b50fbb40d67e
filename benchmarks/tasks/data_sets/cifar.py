"""CIFAR-10 and CIFAR-100 through torchvision."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kd_methods.errors import DiskError, UserError

from ...common.files import locked
from ..base import NoData
from ..images import ImageTask, Split

FOLDERS = {"CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python"}


def load(data_set: str, root: Path, download: bool) -> tuple[Split, Split]:
    """The official train and test images, checked by torchvision's digests.

    ``root`` is the folder that holds ``cifar-100-python`` (or -10's), or one above it. Where it is missing, the archive
    is downloaded if there is a network.

    Raises:
        UserError: no data and no network, or damaged files.
    """
    places = (root, root / data_set.lower(), root.parent)
    place = next((place for place in places if (place / FOLDERS[data_set]).is_dir()), None)
    if place is None and not download:
        raise _missing(data_set, root, "is downloaded for a run alone")
    import torchvision.datasets

    dataset: Any = getattr(torchvision.datasets, data_set)
    try:
        if place is None:
            _download(dataset, root, FOLDERS[data_set])
        splits = [dataset(str(place or root), train=train) for train in (True, False)]
    except (OSError, RuntimeError, DiskError) as error:
        if place:
            raise UserError(
                f"{place / FOLDERS[data_set]} is damaged or incomplete ({error}); unpack it again"
            ) from None
        raise _missing(data_set, root, f"cannot be downloaded ({type(error).__name__})") from None
    train, test = (Split(torch.from_numpy(split.data), torch.tensor(split.targets)) for split in splits)
    return train, test


def _download(dataset: Any, root: Path, name: str) -> None:
    """Once, where several processes begin at the same moment; the folder has its name when all of it is there."""
    with locked(root, name):
        if not (root / name).is_dir():
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as folder:
                dataset(folder, download=True)
                Path(folder, name).rename(root / name)


def _missing(data_set: str, root: Path, why: str) -> NoData:
    return NoData(
        f"no {data_set} below {root} and it {why}; "
        f"put the folder {FOLDERS[data_set]} there, or name its parent with --data-root"
    )


OFFICIAL = (50_000, 10_000)
CIFAR100 = "ce046832bab115ddc5dec09ddaeb8339c7a9fc00cb9d3f6aebdfd619f125d129"
"""The fingerprint of the official CIFAR-100."""

TASKS = (
    ImageTask("cifar10", 10, partial(load, "CIFAR10"), official=OFFICIAL, usual_protocol="cifar10-feature-only"),
    ImageTask("cifar100", 100, partial(load, "CIFAR100"), official=OFFICIAL, official_fingerprint=CIFAR100),
)
