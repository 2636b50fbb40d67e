"""Image files: every depth of pixels, every damage; folders of classes with what else lies in them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.tasks import get_task
from benchmarks.tasks.image_files import picture
from benchmarks.tasks.images import ImageTask
from kd_methods.errors import UserError

RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file by hand: Pillow writes none of 16-bit colours, nor one that lies about its size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        picture(path, "replace it")
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    return str(caught.value)


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm", "png colours"])
def test_16_bits_are_scaled_to_8(tmp_path: Path, kind: str):
    path = tmp_path / "image"
    if kind == "png colours":
        rows = np.repeat(RAMP[..., None], 3, 2).astype(">u2")
        path.write_bytes(png(8, 8, 16, 2, b"".join(b"\x00" + row.tobytes() for row in rows)))
    elif kind == "ppm":
        path.write_bytes(b"P5 8 8 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        path.write_bytes(encoded(Image.fromarray(RAMP), kind))
    image = picture(path, "replace it")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.repeat((RAMP >> 8)[..., None], 3, 2))


def grey_tiff(bits: int, white_is_zero: bool, row: bytes, width: int) -> bytes:
    """A TIFF file of one row by hand: Pillow writes neither 12 bits nor 16 that count from white."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: 1, 279: len(row)}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(row)) + row + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_grey_is_read_as_a_tiff_file_counts_it(tmp_path: Path):
    """Pillow gives 12 bits as they are, nearly black among 16, and 16 that count from white as if from black."""
    path = tmp_path / "image.tif"
    path.write_bytes(grey_tiff(12, False, bytes.fromhex("000fff800400"), 4))  # 0, 4095, 2048, 1024
    assert np.asarray(picture(path, "replace it"))[0, :, 0].tolist() == [0, 255, 128, 64]
    path.write_bytes(grey_tiff(16, True, np.array([0, 65535, 32768, 16384], "<u2").tobytes(), 4))
    assert np.asarray(picture(path, "replace it"))[0, :, 0].tolist() == [255, 0, 127, 191]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_are_refused(tmp_path: Path, dtype: type):
    (tmp_path / "image.tif").write_bytes(encoded(Image.fromarray(RAMP.astype(dtype)), "tiff"))
    assert "32 bits" in refusal(tmp_path / "image.tif")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "UnidentifiedImageError"),
        (b"<html>not found</html>", "UnidentifiedImageError"),
        (png(60_000, 60_000, 8, 2, b""), "DecompressionBombError"),
        (encoded(Image.fromarray(RAMP), "png")[:40], "is no readable image"),
        (encoded(Image.new("RGB", (99, 99)), "jpeg")[:-300], "OSError"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\x05IHDR" + 40 * b"\x00", "Truncated IHDR chunk"),
    ],
)
def test_damaged_images_are_one_line(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "image.png").write_bytes(content)
    assert words in refusal(tmp_path / "image.png")


def test_no_image_at_all(tmp_path: Path):
    refusal(tmp_path / "none.png")
    refusal(tmp_path)


SMALL = [
    *(encoded(Image.fromarray(RAMP), kind) for kind in ("png", "tiff")),
    *(encoded(Image.new("RGB", (9, 7), (1, 99, 200)), kind) for kind in ("png", "jpeg", "bmp", "webp", "tiff", "ppm")),
    *(encoded(Image.new(mode, (9, 7)), kind) for mode, kind in (("P", "gif"), ("CMYK", "jpeg"), ("1", "tiff"))),
    png(8, 8, 16, 6, bytes(8 * 65)),
]


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_any_file(data: st.DataObject, tmp_path: Path):
    """Small images with bytes exchanged and cut off: an image comes out, or one line with the path."""
    content = bytearray(data.draw(st.sampled_from(SMALL)))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content)) | st.just(len(content))) :]
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)  # so that a wrong size takes no time either
        try:
            assert picture(path, "replace it").mode == "RGB"
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)


def classes_of(folder: Path, *extra: str) -> ImageTask:
    """A task of two classes, with further folders in both splits."""
    for split in ("train", "test"):
        for name in ("a", "b", *extra):
            (folder / split / name).mkdir(parents=True)
        for name in ("a", "b"):
            Image.new("RGB", (8, 8)).save(folder / split / name / "0.png")
    task = get_task(f"folder:{folder}")
    assert isinstance(task, ImageTask)
    return task


def test_hidden_files_and_folders_are_no_data(tmp_path: Path):
    task = classes_of(tmp_path, ".ipynb_checkpoints", "a/.ipynb_checkpoints")
    for place in (".ipynb_checkpoints", "a/.ipynb_checkpoints"):
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / place / "0-checkpoint.png")
    (tmp_path / "train" / "a" / "._0.png").write_bytes(b"macOS")
    assert task.num_classes == 2 and task.samples(tmp_path) == 2


def test_an_empty_class_is_named(tmp_path: Path):
    task = classes_of(tmp_path, "nothing")
    with pytest.raises(UserError, match=f"^{tmp_path / 'train' / 'nothing'} has no images; [^\n]*$"):
        task.samples(tmp_path)


def test_images_beside_folders_of_classes_are_told(tmp_path: Path):
    """ImageNet's validation set as its archive unpacks."""
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    for path in (tmp_path / "train" / "n01440764" / "1.JPEG", tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG"):
        Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(UserError, match=r"val has 1 files and no folders of classes; sort .*valprep\.sh[^\n]*$"):
        get_task("imagenet").samples(tmp_path)
