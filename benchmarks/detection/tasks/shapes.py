"""Coloured shapes on noise, in COCO's layout: a detection task that needs no download."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from kd_methods.errors import UserError

from .coco import DetectionTask

CLASSES = ("disc", "square", "triangle")
COUNTS = {"train2017": 64, "val2017": 32}


def make(folder: Path) -> None:
    """Draw the images and write the annotations, all of them or nothing.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            place = Path(temporary) / folder.name
            (place / "annotations").mkdir(parents=True)
            for seed, (split, count) in enumerate(COUNTS.items()):
                (place / split).mkdir()
                content = _draw(place / split, count, np.random.default_rng(seed))
                (place / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
            place.rename(folder)
    except OSError as error:
        if folder.is_dir():  # another process was first
            return
        raise UserError(f"cannot write the shapes to {folder}: {error.strerror}; name another --data-root") from None


def _draw(folder: Path, count: int, random: np.random.Generator) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        width, height = (int(side) for side in random.integers(64, 129, 2))
        noise = random.normal(110, 25, (height, width, 3)).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(noise)
        pen = ImageDraw.Draw(picture)
        placed: list[tuple[int, int, int, int]] = []
        for _ in range(int(random.integers(1, 5))):
            side = int(random.integers(14, 45))
            x, y = int(random.integers(0, width - side)), int(random.integers(0, height - side))
            if any(x < r and left < x + side and y < b and t < y + side for left, t, r, b in placed):
                continue
            kind = int(random.integers(len(CLASSES)))
            colour = tuple(int(value) for value in random.integers(0, 256, 3))
            corners = (x, y, x + side - 1, y + side - 1)
            if kind == 0:
                pen.ellipse(corners, fill=colour)
            elif kind == 1:
                pen.rectangle(corners, fill=colour)
            else:
                pen.polygon([(x + side // 2, y), (x, y + side - 1), (x + side - 1, y + side - 1)], fill=colour)
            placed.append((x, y, x + side, y + side))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": kind + 1,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
        name = f"{number:04d}.png"
        picture.save(folder / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


TASK = DetectionTask(
    "shapes", folder="kd-shapes", num_classes=len(CLASSES), classes=CLASSES, make=make, usual_protocol="shapes-demo"
)
