"""Losses on pooled vectors (B, D), the student's after a linear projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import full_precision, unit


@full_precision
def srd(student_pooled: Tensor, teacher_pooled: Tensor, *, exponent: float = 4.0, eps: float = 1e-4) -> Tensor:
    """log sum |u_s - u_t|^exponent over all values, u = (f - mean) / sqrt(var + eps) with the batch's statistics.

    Where student and teacher agree the logarithm falls without bound; there it ends at the least number that the
    precision holds, without gradient.

    Args:
        student_pooled, teacher_pooled: (B, D) with B >= 2; the student's is projected.
        exponent: of the differences.
        eps: added to the biased variances.

    Source: Miles & Mikolajczyk 2024 in the form of roymiles/Simple-Recipe-Distillation
    ``imagenet/torchdistill/losses/single.py`` @31e8477, without its factor 2.
    """
    s, t = (
        (x - x.mean(0)) / (x.var(0, unbiased=False) + eps).sqrt() for x in (student_pooled, teacher_pooled.detach())
    )
    total = (s - t).abs().pow(exponent).sum()
    return total.clamp_min(torch.finfo(total.dtype).tiny).log()


@full_precision
def srd_correlation(
    student_pooled: Tensor, teacher_pooled: Tensor, *, exponent: float = 4.0, eps: float = 1e-5
) -> Tensor:
    """log(sum_d |r_d - 1|^exponent + eps), r_d the correlation of dimension d over the batch.

    Args:
        student_pooled, teacher_pooled: (B, D) with B >= 2; the student's is projected.
        exponent: of the distances from 1.
        eps: within the logarithm.

    Source: Miles & Mikolajczyk 2024, the form for transformers in roymiles/Simple-Recipe-Distillation
    ``deit/models.py`` @31e8477. A constant dimension counts as uncorrelated.
    """
    s, t = (unit(x - x.mean(0), dim=0) for x in (student_pooled, teacher_pooled.detach()))
    return (((s * t).sum(0) - 1).abs().pow(exponent).sum() + eps).log()


@full_precision
def vkd(student_pooled: Tensor, teacher_pooled: Tensor) -> Tensor:
    """Smooth L1 distance (mean over all values) of the student's vector and the teacher's, standardised per row.

    Args:
        student_pooled: (B, D), projected orthogonally.
        teacher_pooled: (B, D), standardised as a layer normalisation without affine part does (eps 1e-5).

    Source: Miles et al. 2024 (VkD) in the form of roymiles/vkd ``engine.py`` @4b48050.
    """
    return F.smooth_l1_loss(student_pooled, F.layer_norm(teacher_pooled.detach(), teacher_pooled.shape[1:]))
