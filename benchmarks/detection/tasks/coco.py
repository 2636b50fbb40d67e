"""Object detection on folders in COCO's layout. Imports nothing of mmdetection."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import FailFast, Field, FiniteFloat, PositiveInt, TypeAdapter, ValidationError

from kd_methods.errors import UserError

from ...common.files import complaint, digest, read_text, sha256_file
from ...config.protocol import Protocol
from ...tasks import NoData

METRICS = {"mAP": "bbox_mAP", "AP50": "bbox_mAP_50", "AP75": "bbox_mAP_75"} | {
    f"AP{size}": f"bbox_mAP_{size}" for size in "sml"
}
"""COCO's average precisions, in percent, by the names under which mmdetection gives them as fractions."""

# fmt: off
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""COCO's in the order of its own ids, which is that of the labels of published weights."""

MAX_BYTES = 2**33
"""Of a file of annotations; COCO's have half a gigabyte, Objects365's have six."""


@dataclass(frozen=True, eq=False)
class DetectionSplit:
    """N images with M objects, whatever ids and order the file that they come from gives them.

    Images are in the order of their names, the objects of one image by class, then by box.

    paths       of the images
    sizes       (N, 2) widths and heights
    image       (M,) which image an object is in
    labels      (M,) its class
    boxes       (M, 4) its left, top, width and height in pixels
    areas       (M,) its area in pixels
    crowd       (M,) whether it stands for a crowd
    ignored     (M,) whether training leaves it out
    """

    paths: tuple[str, ...]
    sizes: np.ndarray
    image: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray

    @property
    def count(self) -> int:
        """How many images have objects that are no crowd."""
        return len(np.unique(self.image[~self.crowd]))

    def content(self, classes: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """What a file in COCO's format would hold, with the suite's own ids: positions and labels, from 1 on.

        Not from 0, which pycocotools takes for "no match" where it is an object's.
        """
        columns = (self.image, self.labels, self.boxes, self.areas, self.crowd, self.ignored)
        return {
            "categories": [{"id": label, "name": name} for label, name in enumerate(classes, 1)],
            "images": [
                {"id": place, "file_name": path, "width": width, "height": height}
                for place, (path, (width, height)) in enumerate(zip(self.paths, self.sizes.tolist(), strict=True), 1)
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": image + 1,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                    "ignore": ignored,
                }
                for number, (image, label, box, area, crowd, ignored) in enumerate(
                    zip(*(column.tolist() for column in columns), strict=True), 1
                )
            ],
        }


@dataclass(frozen=True)
class DetectionFiles:
    """A detection task's files: names of the classes by label, and both splits."""

    classes: tuple[str, ...]
    train: DetectionSplit
    val: DetectionSplit
    digest: str


@dataclass(frozen=True)
class DetectionTask:
    """A folder in COCO's layout: ``annotations/instances_{train,val}2017.json``, ``train2017``, ``val2017``.

    Args:
        name: how protocols call the task.
        folder: its folder below the data root; files that lie in the root itself will do as well.
        num_classes: of objects, without background.
        classes: their names in the order of the labels; else the training file's in the order of their ids.
        official: images of the training and the validation set as published.
        source: where to get it.
        make: makes the folder where there is none.
        version: raised when reading is mended; part of every cell.
        usual_protocol: under which teachers of it are verified.
    """

    name: str
    folder: str
    num_classes: int
    classes: tuple[str, ...] = ()
    official: tuple[int, int] = (0, 0)
    source: str = ""
    make: Callable[[Path], None] | None = None
    version: int = 3
    usual_protocol: str = "coco-1x"
    metric: str = field(default="mAP", init=False)
    metrics: tuple[str, ...] = field(default=tuple(METRICS), init=False)
    modality: str = field(default="detection", init=False)
    size: int = field(default=0, init=False)
    official_fingerprint: str = field(default="", init=False)

    @property
    def official_samples(self) -> int:
        """Training images with objects, as published."""
        return self.official[0]

    def open(self, root: Path, protocol: Protocol, device: torch.device) -> DetectionFiles:
        """See :meth:`files`; mmdetection loads the images."""
        return self.files(root)

    def files(self, root: Path) -> DetectionFiles:
        """The files.

        Raises:
            UserError: the folder or a file is missing, or is not what it should be.
        """
        place = root / self.folder
        if self.make and not place.is_dir():
            self.make(place)
        if not (place / "annotations").is_dir() and (root / "annotations").is_dir():
            place = root
        files = _read(place, self.name, self.source, self.classes)
        if len(files.classes) != self.num_classes:
            raise UserError(f"{place} has {len(files.classes)} categories, task {self.name} has {self.num_classes}")
        return files

    def fingerprint(self, root: Path, protocol: Protocol) -> str:
        return self.files(root).digest

    def deviations(self, root: Path) -> tuple[str, ...]:
        if not any(self.official):
            return ()
        files = self.files(root)
        counted = {"training": (files.train, self.official[0]), "validation": (files.val, self.official[1])}
        return tuple(
            f"{split.count} {what} images with objects instead of {usual}"
            for what, (split, usual) in counted.items()
            if split.count != usual
        )

    def samples(self, root: Path, download: bool = True) -> int:
        return self.files(root).train.count


Id = int | str
Length = Annotated[FiniteFloat, Field(ge=0)]


@dataclass(slots=True)
class _Image:
    id: Id
    file_name: Annotated[str, Field(min_length=1)]
    width: PositiveInt
    height: PositiveInt


@dataclass(slots=True)
class _Category:
    id: Id
    name: str


@dataclass(slots=True)
class _Object:
    image_id: Id
    category_id: Id
    bbox: tuple[FiniteFloat, FiniteFloat, Length, Length]
    id: Id = 0
    area: Length | None = None
    iscrowd: bool | None = False
    ignore: bool | None = False


@dataclass(slots=True)
class _File:
    """What is read of a file in COCO's format."""

    images: Annotated[list[_Image], FailFast()]
    annotations: Annotated[list[_Object], FailFast()]
    categories: Annotated[list[_Category], FailFast()]


@functools.cache
def _read(folder: Path, task: str, source: str, classes: tuple[str, ...]) -> DetectionFiles:
    splits, digests = [], []
    for year in ("train2017", "val2017"):
        file, images = folder / "annotations" / f"instances_{year}.json", folder / year
        if not file.is_file() or not images.is_dir():
            absent = images if file.is_file() else file
            raise NoData(
                f"no data for task '{task}': {absent} is missing{f' ({source})' if source else ''}; name the folder "
                "above it with --data-root"
            )
        content = _checked(file)
        if not classes:  # nor does the task name them
            classes = tuple(c.name for c in sorted(content.categories, key=lambda category: _order(category.id)))
        image_files = _image_files([image.file_name for image in content.images], images)
        splits.append(_split(content, image_files, classes, file))
        digests.append([sha256_file(file), sorted((name, size) for name, (_, size) in image_files.items())])
    return DetectionFiles(classes, splits[0], splits[1], digest(digests))


def _checked(file: Path) -> _File:
    """A file's fields.

    Raises:
        UserError: one is missing or wrong, an id is there twice, or an object has an image or a category that is not.
    """
    text = read_text(file, MAX_BYTES, "fetch it again")
    try:
        # In one pass over the text: COCO's polygons, which are not needed, would take gigabytes as Python's objects.
        content = TypeAdapter(_File).validate_json(text)
    except ValidationError as error:
        location, message = complaint(error)
        raise UserError(f"{file} is not in COCO's format: {_field(*location)}{message}") from None
    ids: dict[str, set[Id]] = {}
    for kind, key in (("images", "id"), ("images", "file_name"), ("categories", "id"), ("categories", "name")):
        values: Counter[Id] = Counter(getattr(entry, key) for entry in getattr(content, kind))
        if twice := [value for value, times in values.items() if times > 1]:
            raise UserError(f"{file}: several {kind} have the {key} {twice[0]!r}")
        ids.setdefault(kind, set(values))
    for place, thing in enumerate(content.annotations):
        for key, value, kind in (
            ("image_id", thing.image_id, "images"),
            ("category_id", thing.category_id, "categories"),
        ):
            if value not in ids[kind]:
                example = f", such as {min(ids[kind], key=_order)!r}" if ids[kind] else ""
                where = _field("annotations", place, key)
                raise UserError(f"{file}: {where}{value!r} is none of the ids of the {kind}{example}")
    return content


def _field(*location: str | int) -> str:
    """A place in a file in words, to stand before what is wrong there."""
    # What follows the third key tells of the attempts to read the field.
    keys = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in location[:3]]
    return f"{''.join(keys)[1:]}: " if keys else ""


def _order(key: Id) -> tuple[bool, int, str]:
    """Ids by their number, those that are none by name."""
    return (False, int(key), "") if isinstance(key, int) or key.isdecimal() else (True, 0, key)


def _image_files(names: Sequence[str], folder: Path) -> dict[str, tuple[str, int]]:
    """Path and size of each image; a file may name the folder above its images as well, or one that is not there."""
    image_files, missing = {}, []
    for name in names:
        places = (folder / name, folder.parent / name, folder / PurePosixPath(name).name)
        sized = ((str(path), _size(path)) for path in places)
        if place := next(((path, size) for path, size in sized if size is not None), None):
            image_files[name] = place
        else:
            missing.append(name)
    if len({path for path, _ in image_files.values()}) < len(image_files):
        raise UserError(f"{folder} has no sub-folders, and without theirs several images have the same name")
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of {len(names)} images, such as {missing[0]}")
    return image_files


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # a link to nowhere, no permission, no name of a file
        return None


def _split(
    content: _File, image_files: dict[str, tuple[str, int]], classes: tuple[str, ...], file: Path
) -> DetectionSplit:
    """Images, objects and labels of a file: the one place where its ids become positions and labels."""
    names = [category.name for category in content.categories]
    if sorted(names) != sorted(classes):
        raise UserError(
            f"{file} has {len(names)} categories, which are not the {len(classes)} of the task or its training file: "
            f"{', '.join(sorted(set(names) ^ set(classes))[:5])}"
        )
    labels = {category.id: classes.index(category.name) for category in content.categories}
    images = sorted(content.images, key=lambda image: (PurePosixPath(image.file_name).name, image.file_name))
    places = {image.id: place for place, image in enumerate(images)}
    things = sorted(
        content.annotations,
        key=lambda thing: (
            *(places[thing.image_id], labels[thing.category_id], thing.bbox, _area(thing)),
            *(bool(thing.iscrowd), bool(thing.ignore)),
        ),
    )
    boxes = np.array([thing.bbox for thing in things], np.float64).reshape(-1, 4)
    return DetectionSplit(
        paths=tuple(image_files[image.file_name][0] for image in images),
        sizes=np.array([(image.width, image.height) for image in images], np.int64).reshape(-1, 2),
        image=np.array([places[thing.image_id] for thing in things], np.int64),
        labels=np.array([labels[thing.category_id] for thing in things], np.int64),
        boxes=boxes,
        areas=np.array([_area(thing) for thing in things], np.float64),
        crowd=np.array([bool(thing.iscrowd) for thing in things], bool),
        ignored=np.array([bool(thing.ignore) for thing in things], bool),
    )


def _area(thing: _Object) -> float:
    return thing.bbox[2] * thing.bbox[3] if thing.area is None else thing.area


TASK = DetectionTask(
    "coco",
    folder="coco",
    num_classes=len(CLASSES),
    classes=CLASSES,
    official=(117266, 4952),
    source="COCO 2017 from cocodataset.org: train2017, val2017 and the annotations",
)
