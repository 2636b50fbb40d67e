"""ImageNet (ILSVRC 2012): folders ``train`` and ``val`` with one sub-folder per class, or the official archives."""

from __future__ import annotations

from pathlib import Path

import torch

from kd_methods.errors import UserError, first_line

from ..base import NoData
from ..image_files import class_folders, images_of
from ..streamed import Files, StreamTask

ARCHIVES = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
SORT = (
    "sort them into folders of their classes (n01440764/IMAGE.JPEG), as valprep.sh of soumith/imagenetloader.torch "
    "does with the validation set, or give the folder of the archives, which are unpacked and sorted then"
)


def find(root: Path, unpack: bool = True) -> tuple[Files, Files]:
    """Training and validation images below ``root`` or ``root/imagenet``; archives are checked and unpacked.

    Classes have their official numbers even where only some of them are there, so that published weights fit.

    Raises:
        UserError: no data, a damaged archive, or a folder that is none of the 1,000 classes.
    """
    places = (root, root / "imagenet", root / "ILSVRC2012")
    place = next((p for p in places if (p / "train").is_dir() and (p / "val").is_dir()), None)
    if place is None:
        place = next((p for p in places if all((p / name).is_file() for name in ARCHIVES)), None)
        if place is None:
            raise NoData(
                f"no ImageNet below {root}; put folders train and val with one sub-folder per class (n01440764) "
                f"there, or the archives {', '.join(ARCHIVES)}, or name their folder with --data-root"
            )
        if not unpack:
            raise NoData(f"{place} holds the archives; the first run checks and unpacks them")
        _unpack(place)
    train, test = (_listed(place / name) for name in ("train", "val"))
    return train, test


def _unpack(place: Path) -> None:
    """Check the archives' md5 and unpack them, by torchvision."""
    from torchvision.datasets import ImageNet

    for split in ("train", "val"):
        try:
            ImageNet(str(place), split=split)
        except (RuntimeError, OSError, EOFError) as error:
            raise UserError(f"{place}: the archive of {split} is damaged ({first_line(error)})") from None


def _listed(folder: Path) -> Files:
    from timm.data import ImageNetInfo

    numbers = {name: i for i, name in enumerate(sorted(ImageNetInfo("imagenet-1k").label_names()))}
    classes = class_folders(folder, SORT)
    if foreign := [name for name in classes if name not in numbers]:
        raise UserError(f"{folder / foreign[0]} is none of ImageNet's 1,000 classes; remove it, or use folder:PATH")
    labelled = images_of(folder, {name: numbers[name] for name in classes})
    if not labelled:
        raise UserError(f"{folder} has no images; expected {folder}/n01440764/IMAGE.JPEG")
    paths = tuple(str(Path(path).relative_to(folder)) for path, _ in labelled)
    return Files(folder, paths, torch.tensor([label for _, label in labelled]))


TASKS = (StreamTask("imagenet", 1000, find, official=(1_281_167, 50_000)),)
