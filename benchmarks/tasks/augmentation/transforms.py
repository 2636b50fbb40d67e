"""What is done to an image from a file, for training and for tests.

The libraries that do it are imported by those who call them: a plan that has no images from files need not wait.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from kd_methods.errors import UserError

from ...config.recipe import Crops

if TYPE_CHECKING:
    from torchvision.transforms import v2


def augmented(crops: Crops, flip: bool, mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """A picture to grey levels (C, H, W), at random.

    They are uint8, and what is erased takes the mean colour, in [0, 1] by channel; or noise, with which they are int16.

    Raises:
        UserError: timm does not know this ``auto_augment``.
    """
    from torchvision.transforms import InterpolationMode, v2

    names = ("bilinear", "bicubic") if crops.interpolation == "random" else (crops.interpolation,)
    cuts = [
        v2.RandomResizedCrop(crops.size, scale=crops.scale, interpolation=InterpolationMode(name), antialias=True)
        for name in names
    ]
    steps: list[Any] = [cuts[0] if len(cuts) == 1 else v2.RandomChoice(cuts)]
    steps += [v2.RandomHorizontalFlip()] if flip else []
    if crops.auto_augment:
        steps.append(_auto_augment(crops, mean))
    elif crops.color_jitter:
        steps.append(v2.ColorJitter(*(crops.color_jitter,) * 3))
    steps.append(v2.PILToTensor())
    if crops.erase_fill == "noise":
        steps.append(ErasingWithNoise(crops.erase, mean, std))
    elif crops.erase:  # to the mean colour, which is zero for the network
        value = [round(255 * channel) for channel in mean]
        steps.append(v2.RandomErasing(crops.erase, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3), value=value))
    return v2.Compose(steps)


def clean(crops: Crops) -> v2.Transform:
    """A picture to uint8 (C, H, W), resized and cut at the centre."""
    from torchvision.transforms import InterpolationMode, v2

    way = InterpolationMode(crops.test_interpolation or crops.interpolation)
    resize = v2.Resize(crops.test_resize, interpolation=way, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(crops.size), v2.PILToTensor()])


class ErasingWithNoise:
    """timm's random erasing in its mode ``pixel``, of uint8 (C, H, W) as the protocol normalises it, to int16.

    Grey levels of noise are whole ones, as all are, and not cut off at black and white. A class, because processes that
    load images are handed it where they are not forked (macOS).
    """

    def __init__(self, probability: float, mean: Sequence[float], std: Sequence[float]) -> None:
        from timm.data.random_erasing import RandomErasing

        self.erase = RandomErasing(probability, mode="pixel", device="cpu")
        self.centre, self.scale = (torch.tensor(values).view(-1, 1, 1) * 255 for values in (mean, std))

    def __call__(self, image: Tensor) -> Tensor:
        normalised = (image - self.centre) / self.scale
        self.erase(normalised)
        return (normalised * self.scale + self.centre).round().to(torch.int16)


def _auto_augment(crops: Crops, mean: Sequence[float]) -> Any:
    """timm's RandAugment or AutoAugment, its borders filled with the mean colour, as timm's ``create_transform``."""
    from timm.data import auto_augment
    from timm.data.transforms import str_to_pil_interp

    fill = {"translate_const": int(crops.size * 0.45), "img_mean": tuple(min(255, round(255 * c)) for c in mean)}
    fill |= {} if crops.interpolation == "random" else {"interpolation": str_to_pil_interp(crops.interpolation)}
    random_choice = crops.auto_augment.startswith("rand")
    make = auto_augment.rand_augment_transform if random_choice else auto_augment.auto_augment_transform
    try:
        transform = make(crops.auto_augment, fill)
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(f"crops.auto_augment '{crops.auto_augment}': timm does not know it ({error})") from None
    for operation in transform.ops if random_choice else itertools.chain(*transform.policy):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's; at no bits, which recent versions of Pillow do not accept, what it was before: black."""
    from timm.data.auto_augment import posterize

    return image.point(lambda value: 0) if bits < 1 else posterize(image, bits)
