"""Learned maps from the student's features to the teacher's."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

ConnectorKind = Literal["conv1x1", "conv3x3_leaky", "transposed", "identity"]


class Connector(nn.Module):
    """Maps a student's block output to what the next block of the teacher expects: convolution, BN, resize, ReLU.

    Our reading of Block-KD (arXiv 2411.01547), which only says that channels are aligned. The maps are resized to the
    teacher's size (nearest) only where sizes differ. Convolutions start as in OFD's connector: normal, with standard
    deviation sqrt(2 / (k² C_t)).

    Args:
        student_shape, teacher_shape: (C, H, W) of the two outputs.
        rectify: end in a ReLU, because the teacher's block does.
        kind: ``conv1x1``, ``conv3x3_leaky`` (its ReLU lets a tenth of negative values pass, as in FCFD's bridges),
            ``transposed`` (4x4 of stride 2 where the teacher's map is twice as large, else 3x3), or ``identity``.

    Raises:
        UserError: a shape is not (C, H, W), or ``identity`` with shapes that differ.
    """

    def __init__(
        self,
        student_shape: tuple[int, ...],
        teacher_shape: tuple[int, ...],
        rectify: bool,
        kind: ConnectorKind = "conv1x1",
    ) -> None:
        super().__init__()
        _require_maps("a connector", student_shape, teacher_shape)
        self.size = teacher_shape[1:]
        self.rectify = rectify
        self.slope = 0.1 if kind == "conv3x3_leaky" else 0.0
        self.body: nn.Module
        if kind == "identity":
            if student_shape != teacher_shape:
                raise UserError(
                    f"connector 'identity' needs equal shapes, here {student_shape} and {teacher_shape}; use 'conv1x1'"
                )
            self.body = nn.Identity()
            return
        c_in, c_out = student_shape[0], teacher_shape[0]
        conv: nn.Conv2d | nn.ConvTranspose2d
        if kind == "transposed" and all(t == 2 * s for s, t in zip(student_shape[1:], self.size, strict=True)):
            conv = nn.ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1, bias=False)
        else:
            kernel = 1 if kind == "conv1x1" else 3
            conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
        nn.init.normal_(conv.weight, 0, math.sqrt(2 / (conv.kernel_size[0] * conv.kernel_size[1] * c_out)))
        self.body = nn.Sequential(conv, nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_s, H_s, W_s) to (B, C_t, H_t, W_t)."""
        x = self.body(x)
        if x.shape[2:] != self.size:
            x = F.interpolate(x, size=self.size, mode="nearest")
        return F.leaky_relu(x, self.slope) if self.rectify else x


def spatial(x: Tensor, scrambled: bool = False) -> Tensor:
    """Maps (B, C, H, W) as they are, tokens (B, L, D) as (B, D, 1, L), vectors (B, C) as (B, C, 1, 1).

    ``scrambled`` tokens are reshaped instead of transposed, a mistake that feature-only KD's public code makes.
    """
    if x.dim() == 3:
        x = x.reshape(len(x), x.shape[2], x.shape[1]) if scrambled else x.transpose(1, 2)
        return x[:, :, None]
    return x[..., None, None] if x.dim() == 2 else x


def three_layers(c_in: int, c_out: int, tokens: bool = False) -> nn.Sequential:
    """1x1, 3x3 and 1x1 convolutions without biases, twice as wide within, BN and ReLU between them.

    SemCKD's projection. For ``tokens`` (B, C, 1, L) the middle one spans three tokens.
    """
    mid, layers = 2 * c_out, []
    for a, kernel in ((c_in, (1, 1)), (mid, (1 if tokens else 3, 3))):
        padding = (kernel[0] // 2, kernel[1] // 2)
        layers += [nn.Conv2d(a, mid, kernel, padding=padding, bias=False), nn.BatchNorm2d(mid), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(mid, c_out, 1, bias=False))


class ConvReg(nn.Sequential):
    """FitNet's regressor: one convolution that also settles the size, BN and, if it is to ``rectify``, ReLU.

    3x3 of stride 2 where the student's map is twice as large, transposed 4x4 of stride 2 where it is half as large,
    else (1 + H_s - H_t) x (1 + W_s - W_t) without padding (RepDistiller ``models/util.py``).

    Args:
        student_shape, teacher_shape: (C, H, W) of the two maps.
        rectify: end in a ReLU.

    Raises:
        UserError: a shape is not (C, H, W), or the student's map is smaller by anything but a factor of two.
    """

    def __init__(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...], rectify: bool = True) -> None:
        _require_maps("FitNet's regressor", student_shape, teacher_shape)
        c_s, h_s, w_s = student_shape
        c_t, h_t, w_t = teacher_shape
        conv: nn.Module
        if (h_s, w_s) == (2 * h_t, 2 * w_t):
            conv = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
        elif (2 * h_s, 2 * w_s) == (h_t, w_t):
            conv = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
        elif h_s >= h_t and w_s >= w_t:
            conv = nn.Conv2d(c_s, c_t, (1 + h_s - h_t, 1 + w_s - w_t))
        else:
            raise UserError(
                f"FitNet's regressor cannot map {h_s}x{w_s} to {h_t}x{w_t}; match another stage or another pair"
            )
        super().__init__(conv, nn.BatchNorm2d(c_t), *([nn.ReLU()] if rectify else []))


def _require_maps(who: str, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        if len(shape) != 3:
            raise UserError(
                f"{who} needs feature maps (C, H, W), here one output has shape {shape}; use another method"
            )
