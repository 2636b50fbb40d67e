"""A folder of images as a task: its classes, its content, what is said of what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from helpers.errors import one_line
from helpers.images import CPU, protocol
from PIL import Image

from benchmarks.tasks import get_task
from benchmarks.tasks.images import ImageTask


def write_images(folder: Path, classes: Mapping[str, int], colour: Callable[[int], tuple[int, int, int]]) -> None:

    for position, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 50), colour(position)).save(folder / name / f"{i}.png")


def folder_task(folder: Path) -> ImageTask:
    task = get_task(f"folder:{folder}")
    assert isinstance(task, ImageTask)
    return task


@pytest.mark.parametrize("second", ["test", "val"])
def test_a_folder_of_images(tmp_path: Path, second: str):
    def colour(position: int) -> tuple[int, int, int]:
        return (10 + position, 100, 200)

    write_images(tmp_path / "train", {"cat": 3, "ant": 2}, colour)
    write_images(tmp_path / second, {"cat": 1, "ant": 1}, colour)
    task = folder_task(tmp_path)
    assert task.num_classes == 2 and task.samples(tmp_path) == 5
    data = task.open(tmp_path, protocol(), CPU)
    assert data.input_shape == (3, 32, 32)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1] and data.test.labels.tolist() == [0, 1]
    # Classes are the sorted names: "ant" was written second.
    assert data.train.images[0, 0, 0].tolist() == [11, 100, 200]
    assert data.train.images[-1, 5, 7].tolist() == [10, 100, 200]
    with torch.no_grad():
        assert data.build("resnet8")(next(data.batches(0, 1)).student().inputs).logits.shape == (5, 2)


def test_a_folder_is_known_by_its_content_wherever_it_lies(tmp_path: Path):
    for place in ("here", "there/now"):
        for split in ("train", "test"):
            write_images(tmp_path / place / split, {"a": 1, "b": 1}, lambda position: (position, 0, 0))
    here, there = folder_task(tmp_path / "here"), folder_task(tmp_path / "there" / "now")
    assert get_task(here.name) is here and get_task(f"folder:{tmp_path}/there/../here/") is here
    assert here.fingerprint(tmp_path, protocol()) == there.fingerprint(tmp_path, protocol())


def test_what_a_folder_may_lack(tmp_path: Path):
    one_line(lambda: get_task(f"folder:{tmp_path / 'none'}"), "there is no such folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    one_line(lambda: folder_task(empty).samples(tmp_path), "'train'", "train/CLASS/IMAGE")
    half = tmp_path / "half"
    write_images(half / "train", {"a": 1}, lambda position: (0, 0, 0))
    one_line(lambda: folder_task(half).samples(tmp_path), "'test'")
    (half / "test" / "a").mkdir(parents=True)
    one_line(lambda: folder_task(half).samples(tmp_path), str(half / "test"))
    other = tmp_path / "other"
    write_images(other / "train", {"a": 1, "b": 1}, lambda position: (0, 0, 0))
    write_images(other / "test", {"a": 1, "c": 1}, lambda position: (0, 0, 0))
    one_line(lambda: folder_task(other).samples(tmp_path), "classes", "differ")


def test_a_damaged_image_is_named(tmp_path: Path):
    for split in ("train", "test"):
        write_images(tmp_path / split, {"a": 2}, lambda position: (0, 0, 0))
    (tmp_path / "train" / "a" / "1.png").write_bytes(b"no image")
    one_line(lambda: folder_task(tmp_path).samples(tmp_path), "1.png")
