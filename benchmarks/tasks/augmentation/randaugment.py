"""RandAugment as FixMatch has it, and so MLLD's strong view: two operations at random strengths, then a cut-out square.

Each image draws operations and strengths of its own; all images that drew the same operation go through it together, on
whatever device they are. Operations give what Pillow gives, up to one grey level (tests compare).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATIONS = 2
"""Operations drawn for each image, one after the other."""
CUTOUT = 0.5
"""Largest side of the square that is cut out, as a share of the width."""
FILL = (125, 123, 114)
"""Its colour."""

Operation = Callable[[Tensor, Tensor], Tensor]
"""Images (B, H, W, C) with values 0 to 255 as float and strengths (B,) to images."""


def randaugment(images: Tensor, draws: torch.Generator) -> Tensor:
    """Augment (B, H, W, 3) uint8 images.

    Source: the strong view of the MLLD and logit-standardisation code (``mdistiller/dataset/cifar100.py``).

    Args:
        images: the cropped and flipped images.
        draws: source of the random numbers, on the CPU.
    """
    device, batch = images.device, len(images)
    x = images.float()
    for _ in range(OPERATIONS):
        kinds = torch.randint(len(TABLE), (batch,), generator=draws)
        shares = torch.rand(batch, generator=draws)
        for kind, (operation, low, high) in enumerate(TABLE):
            chosen = (kinds == kind).nonzero().squeeze(1).to(device)
            if len(chosen):
                strengths = (low + (high - low) * shares[kinds == kind]).to(device)
                x[chosen] = operation(x[chosen], strengths).clamp(0, 255).floor()
    side = CUTOUT * torch.rand(batch, generator=draws)
    centre = torch.rand(2, batch, generator=draws)
    return cut_out(x, side.to(device), centre.to(device)).to(torch.uint8)


def cut_out(x: Tensor, side: Tensor, centre: Tensor) -> Tensor:
    """Paint a square of ``side`` (B,) shares of the width around ``centre`` (2, B), both in [0, 1)."""
    height, width = x.shape[1:3]
    side = side * width
    inside = []
    for position, length in zip(centre, (width, height), strict=True):
        # numpy.random.uniform(w), as the source has it, is uniform in (1, w].
        low = (length - (length - 1) * position - side / 2).clamp_min(0).floor()
        pixel = torch.arange(length, device=x.device)
        inside.append((pixel >= low[:, None]) & (pixel <= (low + side)[:, None]))
    square = (inside[1][:, :, None] & inside[0][:, None, :] & (side > 0)[:, None, None])[..., None]
    return torch.where(square, torch.tensor(FILL, dtype=x.dtype, device=x.device), x)


def _blend(x: Tensor, degenerate: Tensor, strength: Tensor) -> Tensor:
    """Pillow's enhancement: ``degenerate`` at strength 0, the image at 1."""
    return degenerate + strength[:, None, None, None] * (x - degenerate)


def _grey(x: Tensor) -> Tensor:
    weights = torch.tensor([19595.0, 38470.0, 7471.0], dtype=torch.float64, device=x.device)
    return ((x.double() * weights).sum(3, keepdim=True).add(32768) / 65536).floor().to(x.dtype)


def _identity(x: Tensor, strength: Tensor) -> Tensor:
    return x


def _brightness(x: Tensor, strength: Tensor) -> Tensor:
    return _blend(x, torch.zeros_like(x), strength)


def _color(x: Tensor, strength: Tensor) -> Tensor:
    return _blend(x, _grey(x).expand_as(x), strength)


def _contrast(x: Tensor, strength: Tensor) -> Tensor:
    mean = _grey(x).mean((1, 2, 3), keepdim=True).add(0.5).floor()
    return _blend(x, mean.expand_as(x), strength)


def _sharpness(x: Tensor, strength: Tensor) -> Tensor:
    kernel = torch.ones(3, 3, device=x.device, dtype=x.dtype)
    kernel[1, 1] = 5
    smooth = x.clone()  # the border stays as it is
    channels = x.permute(0, 3, 1, 2).flatten(0, 1)[:, None]
    inner = F.conv2d(channels, kernel[None, None] / 13).unflatten(0, (len(x), 3)).squeeze(2)
    smooth[:, 1:-1, 1:-1] = inner.permute(0, 2, 3, 1).add(0.5).floor()
    return _blend(x, smooth, strength)


def _autocontrast(x: Tensor, strength: Tensor) -> Tensor:
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    span = high - low
    return torch.where(span > 0, (x - low) * (255 / span.clamp_min(1)) + 1e-3, x)


def _equalize(x: Tensor, strength: Tensor) -> Tensor:
    flat = x.permute(0, 3, 1, 2).flatten(0, 1).flatten(1).long()
    histogram = torch.zeros(len(flat), 256, dtype=torch.long, device=x.device)
    histogram.scatter_add_(1, flat, torch.ones_like(flat))
    # Pillow's step: pixels but for the brightest level, over 255; an image of one level, or too small, stays.
    last = histogram.gather(1, flat.amax(1, keepdim=True))
    step = (flat.shape[1] - last) // 255
    levels = (step // 2 + histogram.cumsum(1) - histogram) // step.clamp_min(1)
    levels = torch.where(step > 0, levels, torch.arange(256, device=x.device))
    mapped = levels.clamp_max(255).gather(1, flat).to(x.dtype)
    return mapped.unflatten(0, (len(x), 3)).unflatten(2, x.shape[1:3]).permute(0, 2, 3, 1)


def _posterize(x: Tensor, strength: Tensor) -> Tensor:
    unit = 2.0 ** (8 - strength.floor())[:, None, None, None]
    return (x / unit).floor() * unit


def _solarize(x: Tensor, strength: Tensor) -> Tensor:
    return torch.where(x < strength[:, None, None, None], x, 255 - x)


def _affine(x: Tensor, matrix: Tensor) -> Tensor:
    """Nearest pixel at ``matrix`` (B, 2, 3) of each output pixel's centre, in pixels; black outside."""
    height, width = x.shape[1:3]
    device = x.device
    rows, columns = (torch.arange(size, device=device, dtype=torch.float64) + 0.5 for size in (height, width))
    grid = torch.stack(
        [columns.expand(height, -1), rows[:, None].expand(-1, width), torch.ones(height, width, device=device)]
    )
    column, row = torch.einsum("bij,jhw->ibhw", matrix.double(), grid.double()).floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    image = torch.arange(len(x), device=device)[:, None, None]
    return x[image, row.clamp(0, height - 1), column.clamp(0, width - 1)] * inside[..., None]


def _matrix(x: Tensor, **entries: Tensor | float) -> Tensor:
    """The identity with some entries (a b c / d e f, as Pillow names them) replaced."""
    values = dict(zip("abcdef", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), strict=True)) | entries
    rows = [torch.as_tensor(values[name], dtype=torch.float64, device=x.device).expand(len(x)) for name in "abcdef"]
    return torch.stack(rows, 1).unflatten(1, (2, 3))


def _rotate(x: Tensor, strength: Tensor) -> Tensor:
    height, width = x.shape[1:3]
    angle = -strength.double() * (math.pi / 180)
    sine, cosine = angle.sin(), angle.cos()
    middle_x, middle_y = width / 2, height / 2
    return _affine(
        x,
        _matrix(
            x,
            a=cosine,
            b=sine,
            c=middle_x - cosine * middle_x - sine * middle_y,
            d=-sine,
            e=cosine,
            f=middle_y + sine * middle_x - cosine * middle_y,
        ),
    )


def _shear_x(x: Tensor, strength: Tensor) -> Tensor:
    return _affine(x, _matrix(x, b=strength))


def _shear_y(x: Tensor, strength: Tensor) -> Tensor:
    return _affine(x, _matrix(x, d=strength))


def _translate_x(x: Tensor, strength: Tensor) -> Tensor:
    return _affine(x, _matrix(x, c=strength * x.shape[2]))


def _translate_y(x: Tensor, strength: Tensor) -> Tensor:
    return _affine(x, _matrix(x, f=strength * x.shape[1]))


TABLE: tuple[tuple[Operation, float, float], ...] = (
    (_autocontrast, 0, 1),
    (_brightness, 0.05, 0.95),
    (_color, 0.05, 0.95),
    (_contrast, 0.05, 0.95),
    (_equalize, 0, 1),
    (_identity, 0, 1),
    (_posterize, 4, 8),
    (_rotate, -30, 30),
    (_sharpness, 0.05, 0.95),
    (_shear_x, -0.3, 0.3),
    (_shear_y, -0.3, 0.3),
    (_solarize, 0, 256),
    (_translate_x, -0.3, 0.3),
    (_translate_y, -0.3, 0.3),
)
"""Operations with the range of their strengths, each as likely as any other."""
