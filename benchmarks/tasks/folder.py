"""Any folder of images: one sub-folder per class below ``train`` and ``test`` (or ``val``)."""

from __future__ import annotations

import functools
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kd_methods.errors import UserError

from .images import ImageTask, Split, picture

SIZE = 32


def load(folder: Path, size: int, root: Path, download: bool) -> tuple[Split, Split]:
    """All images, resized to ``size`` x ``size`` RGB; classes are the sorted names of the sub-folders.

    Raises:
        UserError: no train or test folder, no images, a damaged image, or classes that differ between the two.
    """
    from PIL import Image
    from torchvision.datasets import ImageFolder

    def read(path: str) -> np.ndarray:
        image = picture(path, "replace or remove it")
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))

    parts = []
    for names in (("train",), ("test", "val")):
        place = next((folder / name for name in names if (folder / name).is_dir()), None)
        if place is None:
            raise UserError(
                f"{folder} has no folder '{names[0]}'; expected {folder}/train/CLASS/IMAGE and {folder}/test"
            )
        try:
            parts.append(ImageFolder(str(place), loader=read))
        except FileNotFoundError as error:
            raise UserError(f"{place}: {error}".splitlines()[0]) from None
    if parts[0].classes != parts[1].classes:
        raise UserError(f"{folder}: the classes of train and test differ")
    train, test = (
        Split(torch.from_numpy(np.stack([image for image, _ in part])), torch.tensor(part.targets)) for part in parts
    )
    return train, test


@functools.cache
def task(path: str) -> ImageTask:
    """The task ``folder:PATH``."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"task folder:{path}: there is no such folder")
    classes = [entry for entry in (folder / "train").glob("*") if entry.is_dir()]
    return ImageTask("folder", max(len(classes), 1), partial(load, folder, SIZE))
