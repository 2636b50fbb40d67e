"""Object detection on folders in COCO's layout. Imports nothing of mmdetection."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kd_methods.errors import UserError

from ..common.files import digest, sha256_file
from ..config.protocol import Protocol

METRICS = {"mAP": "bbox_mAP", "AP50": "bbox_mAP_50", "AP75": "bbox_mAP_75"} | {
    f"AP{size}": f"bbox_mAP_{size}" for size in "sml"
}
"""COCO's average precisions, in percent, by the names under which mmdetection gives them as fractions."""


@dataclass(frozen=True)
class Split:
    """Images and their annotations; ``count`` images have objects that are no crowd."""

    annotations: Path
    images: Path
    count: int


@dataclass(frozen=True)
class Scenes:
    """A detection task's files: classes in the order of their ids, and both splits."""

    classes: tuple[str, ...]
    train: Split
    val: Split
    digest: str


@dataclass(frozen=True)
class DetectionTask:
    """A folder in COCO's layout: ``annotations/instances_{train,val}2017.json``, ``train2017``, ``val2017``.

    Args:
        name: how protocols call the task.
        folder: its folder below the data root; files that lie in the root itself will do as well.
        num_classes: of objects, without background.
        official: images of the training and the validation set as published.
        source: where to get it.
        make: makes the folder where there is none.
    """

    name: str
    folder: str
    num_classes: int
    official: tuple[int, int] = (0, 0)
    source: str = ""
    make: Callable[[Path], None] | None = None
    version: int = 1
    metric: str = field(default="mAP", init=False)
    inputs: str = field(default="detection", init=False)
    size: int = field(default=0, init=False)

    def open(self, root: Path, protocol: Protocol, device: torch.device) -> Scenes:
        """See :meth:`scenes`; mmdetection loads the images."""
        return self.scenes(root)

    def scenes(self, root: Path) -> Scenes:
        """The files.

        Raises:
            UserError: the folder or a file is missing, or is not what it should be.
        """
        place = root / self.folder
        if self.make and not place.is_dir():
            self.make(place)
        if not (place / "annotations").is_dir() and (root / "annotations").is_dir():
            place = root
        scenes = _read(place, self.name, self.source)
        if len(scenes.classes) != self.num_classes:
            raise UserError(f"{place} has {len(scenes.classes)} categories, task {self.name} has {self.num_classes}")
        return scenes

    def fingerprint(self, root: Path, protocol: Protocol) -> str:
        return self.scenes(root).digest

    def deviations(self, root: Path) -> tuple[str, ...]:
        if not any(self.official):
            return ()
        scenes = self.scenes(root)
        found = {"training": (scenes.train, self.official[0]), "validation": (scenes.val, self.official[1])}
        return tuple(
            f"{split.count} {what} images with objects instead of {usual}"
            for what, (split, usual) in found.items()
            if split.count != usual
        )

    def samples(self, root: Path, download: bool = True) -> int:
        return self.scenes(root).train.count


@functools.cache
def _read(folder: Path, task: str, source: str) -> Scenes:
    splits, classes, digests = [], [], []
    for year in ("train2017", "val2017"):
        file, images = folder / "annotations" / f"instances_{year}.json", folder / year
        if not file.is_file() or not images.is_dir():
            absent = images if file.is_file() else file
            raise UserError(
                f"no data for task '{task}': {absent} is missing{f' ({source})' if source else ''}; name the folder "
                "above it with --data-root"
            )
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            names = {image["id"]: image["file_name"] for image in content["images"]}
            used = {a["image_id"] for a in content["annotations"] if not a.get("iscrowd")}
            classes.append(tuple(c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} holds no COCO annotations ({type(error).__name__}: {error})") from None
        there = {path.name: path.stat().st_size for path in images.iterdir()}
        if missing := [name for name in names.values() if name not in there]:
            raise UserError(f"{images} lacks {len(missing)} of {len(names)} images, such as {missing[0]}")
        splits.append(Split(file, images, len(used & set(names))))
        digests.append([sha256_file(file), sorted((name, there[name]) for name in names.values())])
    if classes[0] != classes[1]:
        raise UserError(f"{folder}: training and validation set have different categories")
    return Scenes(classes[0], splits[0], splits[1], digest(digests))


TASK = DetectionTask(
    "coco",
    folder="coco",
    num_classes=80,
    official=(117266, 4952),
    source="COCO 2017 from cocodataset.org: train2017, val2017 and the annotations",
)
