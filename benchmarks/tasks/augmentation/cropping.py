"""Random rotation, crop and flip of images that lie on the device, a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How images are augmented.

    padding      pixels of padding on each side before the crop back to (H, W); 0 for no crop
    flip         mirror each image with probability 1/2
    fill         ``zeros``, or ``reflect`` for the image mirrored at its border pixels
    one_for_all  all images get the same crop, flip and rotation
    rotation     turn by up to so many degrees, to the nearest pixel as torchvision's RandomRotation; zeros outside
    """

    padding: int
    flip: bool
    fill: str = "zeros"
    one_for_all: bool = False
    rotation: float = 0.0


def augment(images: Tensor, indices: Tensor, draws: torch.Generator, how: Augmentation) -> Tensor:
    """Random rotation, crop and horizontal flip per sample, in one gather on the images' device.

    Args:
        images: (N, H, W, C) uint8, the whole set.
        indices: (B,) which images, on the CPU.
        draws: source of the random numbers, on the CPU.
        how: what is drawn.
    """
    batch, (height, width) = len(indices), images.shape[1:3]
    drawn = 1 if how.one_for_all else batch
    y, x = torch.arange(height).expand(batch, -1), torch.arange(width).expand(batch, -1)
    if how.padding:
        shift = torch.randint(-how.padding, how.padding + 1, (2, drawn, 1), generator=draws)
        y, x = y + shift[0], x + shift[1]
    if how.flip:
        mirrored = torch.rand(drawn, 1, generator=draws) < 0.5
        x = torch.where(mirrored, x.flip(1), x)
    device = images.device
    indices, y, x = indices.to(device), y.to(device), x.to(device)
    if how.fill == "reflect":
        y, x = _reflected(y, height), _reflected(x, width)
    y, x = y[:, :, None], x[:, None, :]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) if how.padding and how.fill == "zeros" else None
    if how.rotation:
        angles = (torch.rand(drawn, generator=draws) * 2 - 1) * how.rotation
        y, x = turned(y, x, (height, width), angles.to(device))
        turned_inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        inside = turned_inside if inside is None else inside & turned_inside
    crops = images[indices[:, None, None], y.clamp(0, height - 1), x.clamp(0, width - 1)]
    return crops if inside is None else crops * inside[..., None]


def turned(y: Tensor, x: Tensor, size: tuple[int, int], angles: Tensor) -> tuple[Tensor, Tensor]:
    """Where pixels of an image turned about its centre, counter-clockwise by degrees (B,), come from."""
    radians = torch.deg2rad(angles)[:, None, None]
    cos, sin = radians.cos(), radians.sin()
    middle = [(length - 1) / 2 for length in size]
    dy, dx = y - middle[0], x - middle[1]
    return (sin * dx + cos * dy + middle[0]).round().long(), (cos * dx - sin * dy + middle[1]).round().long()


def _reflected(position: Tensor, size: int) -> Tensor:
    """Positions outside 0 … size - 1 mirrored at the border, which is not repeated."""
    return size - 1 - (size - 1 - position.abs()).abs()
