"""Tiny-ImageNet: 200 classes at 64x64, in its official layout, held in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from kd_methods.errors import UserError

from ...common.files import read_text
from ..base import NoData
from ..image_files import picture
from ..images import ImageTask, Split

FOLDER = "tiny-imagenet-200"
SIZE = 64


def load(root: Path, download: bool) -> tuple[Split, Split]:
    """The training images and, as test set, the official validation images; grey ones as RGB.

    ``root`` is the folder that holds ``tiny-imagenet-200``, or that folder itself. Classes are its wnids, sorted.

    Raises:
        UserError: no such folder, or a part of it is missing or damaged.
    """
    place = next((p for p in (root, root / FOLDER, root / "imagenet" / FOLDER) if (p / "wnids.txt").is_file()), None)
    if place is None:
        raise NoData(f"no {FOLDER} below {root}; unpack tiny-imagenet-200.zip there, or name it with --data-root")
    names = read_text(place / "wnids.txt", remedy="unpack it again").split()
    classes = {name: i for i, name in enumerate(sorted(set(names)))}
    train = [
        (path, label)
        for name, label in classes.items()
        for path in sorted((place / "train" / name / "images").glob("*.JPEG"))
    ]
    notes = place / "val" / "val_annotations.txt"
    if not train or not notes.is_file():
        raise UserError(f"{place} is incomplete: {notes if train else place / 'train'} is missing; unpack it again")
    rows = [line.split("\t")[:2] for line in read_text(notes, remedy="unpack it again").splitlines() if line.strip()]
    if not rows:
        raise UserError(f"{notes} is empty; unpack it again")
    try:
        test = [(place / "val" / "images" / file, classes[name]) for file, name in rows]
    except (KeyError, ValueError) as error:
        raise UserError(f"{notes} does not fit {place / 'wnids.txt'} ({error}); unpack it again") from None
    with ThreadPoolExecutor() as pool:
        return tuple(  # type: ignore[return-value]
            Split(
                torch.from_numpy(np.stack(list(pool.map(_read, (path for path, _ in files))))),
                torch.tensor([label for _, label in files]),
            )
            for files in (train, test)
        )


def _read(path: Path) -> np.ndarray:
    pixels = np.asarray(picture(path, "unpack the archive again"))
    if pixels.shape != (SIZE, SIZE, 3):
        raise UserError(f"{path} is {pixels.shape[1]}x{pixels.shape[0]}, not {SIZE}x{SIZE}; unpack the archive again")
    return pixels


TASKS = (
    ImageTask("tiny-imagenet", 200, load, size=SIZE, official=(100_000, 10_000), usual_protocol="tiny-imagenet-letkd"),
)
