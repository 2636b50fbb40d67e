"""What is done to images: crops, mirroring, normalisation, RandAugment, label noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.images import CLASSES, CPU, images_of, protocol
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.config.protocol import load_protocol
from benchmarks.config.protocol_words import lines
from benchmarks.tasks.augmentation import randaugment
from benchmarks.tasks.augmentation.cropping import Augmentation, augment
from benchmarks.tasks.data_sets import digits
from benchmarks.tasks.images import ImageData, Split, noisy, normalise


def slow_augment(image: np.ndarray, down: int, right: int, mirrored: bool, padding: int) -> np.ndarray:
    """As a picture library does it: pad with black, cut a window out, mirror the window."""
    height, width = image.shape[:2]
    canvas = np.zeros((height + 2 * padding, width + 2 * padding, 3), np.uint8)
    canvas[padding : padding + height, padding : padding + width] = image
    window = canvas[padding + down : padding + down + height, padding + right : padding + right + width]
    return window[:, ::-1] if mirrored else window


@pytest.mark.parametrize("one", [False, True])
def test_one_crop_for_each_image_or_for_each_batch(one: bool):
    """Of a data set with one image only, a batch with one crop has equal images, and another batch another crop."""
    split = Split(images_of(1).images.expand(64, -1, -1, -1).contiguous(), torch.zeros(64, dtype=torch.long))
    usual = protocol(crop_padding=4, flip=True, one_crop_per_batch=one)
    batches = [batch.student().inputs for batch in ImageData(split, split, CLASSES, usual, CPU).batches(0, 1)]
    assert len(batches) == 4
    assert all(bool((batch == batch[0]).all()) == one for batch in batches)
    assert len({float(batch[0].sum()) for batch in batches}) > 1


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (3, False), (0, True), (4, True)])
def test_augment_equals_the_slow_reference(padding: int, flip: bool):
    split, count = images_of(40), 64
    indices = torch.randint(0, 40, (count,), generator=torch.Generator().manual_seed(2))
    augmented = augment(split.images, indices, torch.Generator().manual_seed(5), Augmentation(padding, flip))
    draws = torch.Generator().manual_seed(5)  # the same numbers again, in the documented order
    shifts = torch.zeros(2, count, dtype=torch.long)
    if padding:
        shifts = torch.randint(-padding, padding + 1, (2, count, 1), generator=draws)[..., 0]
    mirrored = torch.zeros(count, dtype=torch.bool)
    if flip:
        mirrored = torch.rand(count, 1, generator=draws)[:, 0] < 0.5
    assert augmented.dtype == torch.uint8 and augmented.shape == (count, 8, 8, 3)
    for i in range(count):
        wanted = slow_augment(
            split.images[indices[i]].numpy(), int(shifts[0, i]), int(shifts[1, i]), bool(mirrored[i]), padding
        )
        assert np.array_equal(augmented[i].numpy(), wanted), i


def test_augment_covers_every_crop_and_both_sides():
    """Every one of the (2p+1)^2 windows occurs, mirrored and not, about equally often."""
    single = torch.arange(1, 17).reshape(1, 4, 4, 1).expand(-1, -1, -1, 3).to(torch.uint8)
    count = 9 * 2 * 200
    crops = augment(
        single, torch.zeros(count, dtype=torch.long), torch.Generator().manual_seed(0), Augmentation(1, True)
    )
    kinds, occurrences = torch.unique(crops.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 18
    assert int(occurrences.min()) > 140 and int(occurrences.max()) < 260


def test_no_crop_and_no_flip_is_the_identity():
    split = images_of(10)
    indices = torch.tensor([3, 3, 9, 0])
    assert torch.equal(augment(split.images, indices, torch.Generator(), Augmentation(0, False)), split.images[indices])


def test_padding_is_black():
    white = torch.full((1, 8, 8, 3), 255, dtype=torch.uint8)
    crops = augment(white, torch.zeros(200, dtype=torch.long), torch.Generator().manual_seed(0), Augmentation(4, False))
    assert set(crops.unique().tolist()) == {0, 255}
    rows = (crops[..., 0] == 255).any(2).sum(1)
    columns = (crops[..., 0] == 255).any(1).sum(1)
    assert int(rows.min()) == 4 and int(rows.max()) == 8  # never more than the padding is lost
    assert torch.equal((crops[..., 0] == 255).sum((1, 2)), rows * columns)


def test_augment_leaves_the_images_alone():
    split = images_of(10)
    before = split.images.clone()
    crops = augment(split.images, torch.arange(10), torch.Generator().manual_seed(0), Augmentation(2, True))
    crops.zero_()
    assert torch.equal(split.images, before)


def test_normalise():
    split = images_of(6)
    mean, std = (0.3, 0.4, 0.5), (0.1, 0.2, 0.3)
    before = split.images.clone()
    normalised = normalise(split.images, (mean, std))
    wanted = (split.images.numpy().astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    assert normalised.dtype == torch.float32 and normalised.shape == (6, 3, 8, 8)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(normalised.numpy(), wanted.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    assert torch.equal(split.images, before)


def pillow(operation: str, image: Image.Image, strength: float) -> Image.Image:
    """What the MLLD code does with Pillow."""
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    width = image.size[0]
    matrices = {
        "shear_x": (1, strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, strength, 1, 0),
        "translate_x": (1, 0, strength * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, strength * width),
    }
    if operation in enhancers:
        return enhancers[operation](image).enhance(strength)
    if operation in matrices:
        return image.transform(image.size, Image.Transform.AFFINE, matrices[operation])
    return {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "identity": lambda: image,
        "posterize": lambda: ImageOps.posterize(image, int(strength)),
        "rotate": lambda: image.rotate(strength),
        "solarize": lambda: ImageOps.solarize(image, strength),
    }[operation]()


@pytest.mark.parametrize(("operation", "low", "high"), randaugment.TABLE, ids=lambda x: getattr(x, "__name__", ""))
def test_operations_give_what_pillow_gives(operation: randaugment.Operation, low: float, high: float):
    images = torch.cat([images_of(20, side=12).images, images_of(20, side=12, seed=1).images // 3 + 40])
    images[0], images[1, :, :6] = 77, 200  # one level; two levels in a half
    strengths = low + (high - low) * torch.rand(len(images), generator=torch.Generator().manual_seed(3))
    changed = operation(images.float(), strengths).clamp(0, 255).floor().int()
    for image, strength, ours in zip(images, strengths.tolist(), changed, strict=True):
        name = operation.__name__.removeprefix("_")
        theirs = torch.from_numpy(np.array(pillow(name, Image.fromarray(image.numpy()), strength))).int()
        off = (ours - theirs).abs() > 1
        # Rotation may round a pixel's source to its neighbour.
        assert off.float().mean() <= (0.02 if name == "rotate" else 0), (name, strength)


def test_the_cut_out_square():
    x = torch.full((3, 10, 10, 3), 50.0)
    side, centre = torch.tensor([0.4, 0.4, 0.0]), torch.tensor([[0.5, 0.0, 0.5], [0.5, 1.0, 0.5]])
    cut = randaugment.cut_out(x, side, centre)
    painted = (cut == torch.tensor(randaugment.FILL, dtype=x.dtype)).all(3)
    inside = torch.zeros(3, 10, 10, dtype=torch.bool)
    inside[0, 3:8, 3:8] = True
    inside[1, :5, 8:] = True  # clipped at the corner; columns from x, rows from y; draws run from the far side
    assert torch.equal(painted, inside) and torch.equal(cut[~inside], x[~inside])


def test_randaugment_draws_every_operation():
    images = images_of(400, side=8).images
    before = images.clone()
    drawn = randaugment.randaugment(images, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.uint8 and drawn.shape == images.shape and torch.equal(images, before)
    changed = (drawn != images).flatten(1).any(1).float().mean()
    assert changed > 0.9


def test_reflected_crops_are_numpys():
    split = digits.load(Path(), False)[0]
    chosen = torch.arange(40)
    cropped = augment(split.images, chosen, torch.Generator().manual_seed(3), Augmentation(4, False, "reflect"))
    draws = torch.Generator().manual_seed(3)
    shift = torch.randint(-4, 5, (2, 40, 1), generator=draws).squeeze(2)
    for i, (down, right) in enumerate(shift.t().tolist()):
        image = np.pad(split.images[i].numpy(), ((4, 4), (4, 4), (0, 0)), mode="reflect")
        assert np.array_equal(cropped[i].numpy(), image[4 + down : 20 + down, 4 + right : 20 + right])


def test_label_noise_changes_its_share_of_labels_to_others_whatever_the_seed():
    labels = torch.arange(1000) % 10
    changed = noisy(labels, 0.4, 10)
    assert (changed != labels).sum() == 400 and torch.equal(changed, noisy(labels, 0.4, 10))
    assert changed.min() >= 0 and changed.max() < 10 and torch.equal(labels, torch.arange(1000) % 10)
    train, test = digits.load(Path(), False)
    protocol = load_protocol("digits-noise-demo")
    data = ImageData(train, test, 10, protocol, torch.device("cpu"))
    assert (data.info.labels != train.labels).sum() == round(0.4 * len(train.labels))
    assert torch.equal(data.test.labels, test.labels) and torch.equal(data.info.labels, data.train.labels)
    assert "40% of the training labels exchanged" in " ".join(lines(protocol))
