"""Images in files: one reader for all tasks, and the lists of images that lie in folders of their classes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from kd_methods.errors import DiskError, UserError


def picture(path: Path | str, remedy: str) -> Image.Image:
    """An image file as RGB of 8 bits; of a channel with 16 bits the upper 8, which is also what Pillow does to colours.

    Raises:
        DiskError: it cannot be read; ``remedy`` is what to do then.
    """
    try:
        with Image.open(path) as image:
            # Pillow would clip these at 255 instead of scaling them: nearly every pixel becomes white.
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
                return Image.fromarray(_upper_bits(image)).convert("RGB")
            if image.mode in ("I", "F"):
                raise DiskError(f"{path} has 32 bits a pixel, of which nobody says which is white; {remedy}")
            return image.convert("RGB")
    except DiskError:
        raise
    except UnidentifiedImageError:
        raise DiskError(f"{path} is no readable image (UnidentifiedImageError); {remedy}") from None
    except Exception as error:  # Pillow's decoders raise what they like, from OSError to struct.error
        reason = " ".join(str(error).split())[:200]
        raise DiskError(f"{path} is no readable image ({type(error).__name__}: {reason}); {remedy}") from None


def _upper_bits(image: Image.Image) -> np.ndarray:
    """The upper 8 bits of grey pixels; of a TIFF, which Pillow leaves as they are, of as many as it says it uses."""
    tags = getattr(image, "tag_v2", {})
    pixels = (np.asarray(image) >> (tags.get(_BITS_PER_SAMPLE, (16,))[0] - 8)).astype(np.uint8)
    return 255 - pixels if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else pixels


_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def class_folders(folder: Path, remedy: str = "put images into sub-folders named by their classes") -> list[str]:
    """The names of the folders of classes below ``folder``, sorted; hidden ones (``.ipynb_checkpoints``) are none.

    Raises:
        UserError: the folder cannot be read, or there are none.
    """
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); mend its permissions") from None
    if not names:
        what = f"{len(entries):,} files and no folders of classes" if entries else "nothing in it"
        raise UserError(f"{folder} has {what}; {remedy}")
    return names


def images_of(folder: Path, classes: Mapping[str, int]) -> list[tuple[str, int]]:
    """The images in folders of classes, however deep, with their labels.

    Hidden files and folders are left out: editors and file managers leave them behind.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    labelled = make_dataset(folder, dict(classes), IMG_EXTENSIONS, allow_empty=True)
    start = len(str(folder))
    return [(path, label) for path, label in labelled if f"{os.sep}." not in path[start:]]
