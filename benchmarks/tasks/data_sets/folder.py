"""Any folder of images: one sub-folder per class below ``train`` and ``test`` (or ``val``)."""

from __future__ import annotations

import functools
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kd_methods.errors import UserError

from ..base import TaskSource
from ..image_files import class_folders, images_of, picture
from ..images import ImageTask, Split

SIZE = 32


def load(folder: Path, size: int, root: Path, download: bool) -> tuple[Split, Split]:
    """All images, resized to ``size`` x ``size`` RGB; classes are the sorted names of the sub-folders.

    Raises:
        UserError: no train or test folder, a class without images, a damaged image, or classes that differ between the
            two.
    """
    train, test = (_place(folder, *names) for names in (("train",), ("test", "val")))
    classes = class_folders(train)
    if odd := sorted(set(classes) ^ set(class_folders(test))):
        raise UserError(f"{folder}: the classes of {train.name} and {test.name} differ ({', '.join(odd[:5])})")
    return _read(train, classes, size), _read(test, classes, size)


def _place(folder: Path, *names: str) -> Path:
    place = next((folder / name for name in names if (folder / name).is_dir()), None)
    if place is None:
        raise UserError(f"{folder} has no folder '{names[0]}'; expected {folder}/train/CLASS/IMAGE and {folder}/test")
    return place


def _read(folder: Path, classes: list[str], size: int) -> Split:
    labelled = images_of(folder, {name: label for label, name in enumerate(classes)})
    if empty := sorted(set(range(len(classes))) - {label for _, label in labelled}):
        raise UserError(f"{folder / classes[empty[0]]} has no images; add some, or remove that class")

    def read(path: str) -> np.ndarray:
        return np.asarray(picture(path, "replace or remove it").resize((size, size), Image.Resampling.BICUBIC))

    images = np.stack([read(path) for path, _ in labelled])
    return Split(torch.from_numpy(images), torch.tensor([label for _, label in labelled]))


def task(path: str) -> ImageTask:
    """The task ``folder:PATH``, by whatever path the folder is called.

    Raises:
        UserError: no such folder, or none of classes in it.
    """
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"task folder:{path}: there is no such folder ({folder})")
    return _task(folder)


@functools.cache
def _task(folder: Path) -> ImageTask:
    classes = class_folders(_place(folder, "train"))
    return ImageTask(f"folder:{folder}", len(classes), partial(load, folder, SIZE))


TASK_SOURCES = (TaskSource("folder", task),)
