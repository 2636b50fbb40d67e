"""Feature maps as samples: every location of every image is one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract import TeacherPass
from ..errors import UserError


def pooling(who: str, student: tuple[int, ...], teacher: tuple[int, ...]) -> int:
    """The factor by which the teacher's map (C, H, W) is average-pooled to the student's size; 1 for tokens (L, D).

    Raises:
        UserError: the teacher's map is no multiple of the student's, or one has tokens and the other a map.
    """
    if len(student) == len(teacher) == 3:
        ratios = {t / s for s, t in zip(student[1:], teacher[1:], strict=True)}
        if len(ratios) == 1 and (ratio := ratios.pop()) == int(ratio) > 0:
            return int(ratio)
    elif len(student) == len(teacher) and student[:-1] == teacher[:-1]:
        return 1
    raise UserError(
        f"{who} needs teacher maps that are as large as the student's or a multiple of them, here {teacher} and "
        f"{student}; use another method for this pair"
    )


def rows(x: Tensor, factor: int = 1) -> Tensor:
    """(B, C, H, W), average-pooled by ``factor``, or (B, L, D), to one row per location (N, C); in fp32 or fp64."""
    if x.dim() == 4:
        x = (F.avg_pool2d(x, factor) if factor > 1 else x).permute(0, 2, 3, 1)
    return x.reshape(-1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))


def count(shape: tuple[int, ...], factor: int = 1) -> int:
    """How many locations a map of this shape has after pooling."""
    return shape[1] * shape[2] // factor**2 if len(shape) == 3 else shape[0]


def stream(
    teacher_pass: TeacherPass, unit: str, factor: int = 1, indices: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of (features (N, D), labels (N,)) of the teacher's ``unit``, one row per location, where the teacher is.

    See :meth:`kd_methods.contract.TeacherPass.outputs` for ``indices``.
    """
    for outputs, labels in teacher_pass.outputs((unit,), indices):
        features = rows(outputs[unit], factor)
        yield features, labels.to(features.device).repeat_interleave(len(features) // len(labels))
