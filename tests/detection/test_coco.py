"""Files in COCO's format: labels and objects whatever their ids and order, fields checked before anything trains."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.config.protocol import load_protocol
from benchmarks.detection.tasks.coco import DetectionFiles, DetectionTask
from benchmarks.tasks import get_task
from kd_methods.errors import UserError

TASK = get_task("shapes")
OWN = DetectionTask("own", folder="kd-shapes", num_classes=3)
"""A task whose classes are known from its file alone."""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    TASK.samples(root)
    return root / "kd-shapes"


def copied(shapes: Path, root: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A data root with the same images, and both files changed."""
    place = root / "kd-shapes"
    (place / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (place / split).symlink_to(shapes / split)
        content = json.loads((shapes / "annotations" / f"instances_{split}.json").read_text())
        change(content)
        (place / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def permuted(content: dict[str, Any], draw: random.Random) -> None:
    for entries in content.values():
        draw.shuffle(entries)


def renumbered(content: dict[str, Any], draw: random.Random, kinds: tuple[str, ...]) -> None:
    """New ids in a new order, one of which is 0; those of images and categories also become strings at times."""
    new: dict[str, dict[Any, Any]] = {}
    for kind in kinds:
        numbers = [0, *draw.sample(range(1, 10**6), len(content[kind]) - 1)]
        draw.shuffle(numbers)
        textual = kind != "annotations" and draw.random() < 0.5
        new[kind] = {entry["id"]: f"n{n}" if textual else n for entry, n in zip(content[kind], numbers, strict=True)}
        for entry in content[kind]:
            entry["id"] = new[kind][entry["id"]]
    for thing in content["annotations"]:
        thing["image_id"] = new.get("images", {}).get(thing["image_id"], thing["image_id"])
        thing["category_id"] = new.get("categories", {}).get(thing["category_id"], thing["category_id"])


def in_folders(content: dict[str, Any], draw: random.Random) -> None:
    """Names as tools write them that keep the paths which they were given."""
    for image in content["images"]:
        image["file_name"] = f"{draw.choice(('train2017/images', 'somewhere', '/mnt/data', '.'))}/{image['file_name']}"


def equal(files: DetectionFiles, plain: DetectionFiles) -> bool:
    pairs = ((files.train, plain.train), (files.val, plain.val))
    arrays = ("sizes", "image", "labels", "boxes", "areas", "crowd", "ignored")
    same = all([Path(p).name for p in a.paths] == [Path(p).name for p in b.paths] for a, b in pairs)
    same &= all(np.array_equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in arrays)
    return same and files.classes == plain.classes


@pytest.mark.parametrize("seed", range(5))
def test_order_and_ids_of_a_file_change_nothing(shapes: Path, tmp_path: Path, seed: int):
    draw = random.Random(seed)
    plain = TASK.files(shapes.parent)
    listed = copied(shapes, tmp_path / "listed", lambda content: permuted(content, draw))
    assert equal(TASK.files(listed), plain) and equal(OWN.files(listed), plain)

    def disguise(content: dict[str, Any]) -> None:
        permuted(content, draw)
        renumbered(content, draw, ("images", "annotations", "categories"))
        in_folders(content, draw)

    assert equal(TASK.files(copied(shapes, tmp_path / "disguised", disguise)), plain)


def test_categories_of_the_validation_set_may_have_ids_of_their_own(shapes: Path, tmp_path: Path):
    """A task that names no classes has those of the training file, in the order of their ids."""
    sizes: list[int] = []

    def change(content: dict[str, Any]) -> None:
        sizes.append(len(content["images"]))
        if len(sizes) == 2:
            renumbered(content, random.Random(1), ("categories",))

    assert equal(OWN.files(copied(shapes, tmp_path, change)), TASK.files(shapes.parent))


def test_images_in_sub_folders_are_found(shapes: Path, tmp_path: Path):
    def change(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["file_name"] = f"even/{image['file_name']}" if image["id"] % 2 == 0 else image["file_name"]

    root = copied(shapes, tmp_path, change)
    for split in ("train2017", "val2017"):
        place = root / "kd-shapes" / split
        place.unlink()
        (place / "even").mkdir(parents=True)
        for path in (shapes / split).iterdir():
            (place / ("even" if int(path.stem) % 2 == 0 else "") / path.name).write_bytes(path.read_bytes())
    files = TASK.files(root)
    assert equal(files, TASK.files(shapes.parent)) and all(map(Path.is_file, map(Path, files.val.paths)))


def test_crowd_and_area_are_filled_in(shapes: Path, tmp_path: Path):
    """The drawn objects' areas are those of their boxes."""

    def change(content: dict[str, Any]) -> None:
        for thing in content["annotations"]:
            del thing["iscrowd"], thing["area"], thing["id"]

    assert equal(TASK.files(copied(shapes, tmp_path, change)), TASK.files(shapes.parent))


@pytest.mark.parametrize(
    "change",
    [
        lambda thing: {"bbox": [1 + thing["bbox"][0], *thing["bbox"][1:]]},
        lambda thing: {"category_id": thing["category_id"] % 3 + 1},
        lambda thing: {"iscrowd": 1 - thing["iscrowd"]},
    ],
    ids=["box", "category", "crowd"],
)
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_another_object_on_the_same_images_is_other_data(shapes: Path, tmp_path: Path, split: str, change: Any):
    """Else cells of both would have the same key."""
    one, same, other = (copied(shapes, tmp_path / name, lambda content: None) for name in ("one", "same", "other"))
    file = other / "kd-shapes" / "annotations" / f"instances_{split}.json"
    content = json.loads(file.read_text())
    content["annotations"][-1].update(change(content["annotations"][-1]))
    file.write_text(json.dumps(content))
    protocol = load_protocol("shapes-demo")
    digests = [TASK.fingerprint(root, protocol) for root in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


def drop(kind: str, key: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[kind][1].pop(key)


def put(kind: str, key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[kind][1].update({key: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("images", "width"), r"images\[1\]\.width: Field required"),
        (drop("images", "height"), r"images\[1\]\.height: Field required"),
        (put("images", "height", 0), r"images\[1\]\.height: Input should be greater than 0"),
        (put("images", "id", 0), "several images have the id 0"),
        (put("images", "file_name", "0000.png"), "several images have the file_name '0000.png'"),
        (put("images", "file_name", "none.png"), r"train2017 lacks 1 of 64 images, such as none.png"),
        (put("images", "file_name", "no\0name"), "train2017 lacks 1 of 64 images"),
        (put("annotations", "image_id", "0"), r"annotations\[1\]\.image_id: '0' is none of the ids of the im.*as 0"),
        (put("annotations", "category_id", 9), r"annotations\[1\]\.category_id: 9 is none of the ids of the categ"),
        (put("annotations", "bbox", [1, 2, 3]), r"annotations\[1\]\.bbox"),
        (put("annotations", "bbox", [1, 2, -3, 4]), r"annotations\[1\]\.bbox: Input should be greater"),
        (put("annotations", "bbox", [1, 2, 3, float("nan")]), r"annotations\[1\]\.bbox: Input should be a finite"),
        (put("annotations", "area", "large"), r"annotations\[1\]\.area: Input should be a valid number"),
        (put("annotations", "iscrowd", 3), r"annotations\[1\]\.iscrowd"),
        (put("categories", "name", "disc"), "several categories have the name 'disc'"),
        (put("categories", "name", "cube"), r"3 categories, which are not the 3 of the task.*cube, square"),
        (lambda content: content.pop("annotations"), "COCO's format: annotations: Field required"),
        (lambda content: content.update(images="none"), "COCO's format: images: "),
    ],
)  # fmt: skip
def test_a_wrong_field_is_one_line_with_its_place(shapes: Path, tmp_path: Path, change: Any, words: str):
    with pytest.raises(UserError, match=words) as caught:
        TASK.files(copied(shapes, tmp_path, change))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "\x00", "[" * 100_000, '{"images": [{"id": NaN}]}', "{" * 9, "\ufffe"]
)
def test_what_is_no_such_file_is_one_line(shapes: Path, tmp_path: Path, text: str):
    root = copied(shapes, tmp_path, lambda content: None)
    file = root / "kd-shapes" / "annotations" / "instances_val2017.json"
    file.write_text(text)
    with pytest.raises(UserError, match=f"^{file} is not in COCO's format: [^\n]*$"):
        TASK.files(root)
