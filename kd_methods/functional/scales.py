"""Losses on logits of parts of an image, (B, N, K): those of a map's cells at several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import full_precision
from .logit import _decoupled, _kl_rows


@full_precision
def scale_cells(last_map: Tensor, *, scales: Sequence[int] = (1, 2)) -> Tensor:
    """The cells (B, N, C) of a map pooled to 1x1, 2x2 or 4x4, one scale after another and row by row.

    The map is first average-pooled to 4x4 (smaller maps are repeated to it), and all scales are pooled from that.

    Args:
        last_map: (B, C, H, W), the map that the network itself pools before its classifier.
        scales: sides of the grids, out of 1, 2 and 4; N is the sum of their squares.

    Source: Wei et al. 2024 in the form of shicaiwei123/SDD-CVPR2024 ``mdistiller/models/cifar/utils.py`` @e412036.
    """
    base = F.adaptive_avg_pool2d(last_map, 4)
    return torch.cat([F.adaptive_avg_pool2d(base, scale).flatten(2) for scale in scales], 2).transpose(1, 2)


@full_precision
def sdd_kd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Mean over cells and images of w T² KL(softmax(t/T) || softmax(s/T)).

    The weight w of a cell is 2 where the teacher is right on the whole image and wrong on the cell or the other way
    round, else 1.

    Args:
        student_logits, teacher_logits: (B, N, K) of the cells; cell 0 is the whole image.
        labels: (B,) class indices.
        temperature: T.

    Source: Wei et al. 2024, equations 6 to 9, in the form of shicaiwei123/SDD-CVPR2024 ``mdistiller/distillers/KD.py``
    @e412036.
    """
    s, t, _, weight = _rows(student_logits, teacher_logits, labels)
    rows = _kl_rows(F.log_softmax(s / temperature, 1), F.log_softmax(t / temperature, 1))
    return temperature**2 * (weight * rows).mean()


@full_precision
def sdd_dkd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, alpha: float, beta: float, temperature: float
) -> Tensor:
    """Mean over cells and images of w times :func:`~kd_methods.functional.dkd` of the cell; w as in :func:`sdd_kd`.

    Args:
        student_logits, teacher_logits: (B, N, K) of the cells; cell 0 is the whole image.
        labels: (B,) class indices.
        alpha, beta: weights of the target and the non-target term.
        temperature: T.

    Source: as :func:`sdd_kd`, ``SDD_DKD.py``.
    """
    s, t, y, weight = _rows(student_logits, teacher_logits, labels)
    (binary_s, others_s), (binary_t, others_t) = (_decoupled(z / temperature, y) for z in (s, t))
    rows = alpha * _kl_rows(binary_s, binary_t) + beta * _kl_rows(others_s, others_t)
    return temperature**2 * (weight * rows).mean()


@full_precision
def sdd_nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    gamma: float,
    temperature: float,
    masked: bool = False,
) -> Tensor:
    """Mean over cells and images of w times :func:`~kd_methods.functional.nkd` of the cell; w as in :func:`sdd_kd`.

    Args:
        student_logits, teacher_logits: (B, N, K) of the cells; cell 0 is the whole image.
        labels: (B,) class indices.
        gamma: weight of the non-target term.
        temperature: T of the non-target term.
        masked: leave the label's class out of the non-target term, as NKD does. The released code means to, but masks
            nothing: there the term is a cross-entropy over all classes.

    Source: as :func:`sdd_kd`, ``SDD_nkd.py``.
    """
    s, t, y, weight = _rows(student_logits, teacher_logits, labels)
    target_s, target_t = (F.log_softmax(z, 1).gather(1, y.unsqueeze(1)).squeeze(1) for z in (s, t))
    log_s, log_t = (_decoupled(z / temperature, y)[1] if masked else F.log_softmax(z / temperature, 1) for z in (s, t))
    rows = target_t.exp() * target_s + gamma * temperature**2 * (log_t.exp() * log_s).sum(1)
    return -(weight * rows).mean()


def _rows(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student's and teacher's logits (B N, K), labels and weights (B N,)."""
    teacher = teacher.detach()
    labels = labels.unsqueeze(1).expand(teacher.shape[:2])
    right = teacher.argmax(2) == labels
    weight = torch.where(right == right[:, :1], 1.0, 2.0)
    return student.flatten(0, 1), teacher.flatten(0, 1), labels.flatten(), weight.flatten().to(teacher)
