"""Losses on feature maps (B, C, H, W)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import full_precision, unit


@full_precision
def hint(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """FitNet's hint term: mean squared difference of the regressed student map and the teacher's.

    Args:
        student_map, teacher_map: (B, C, H, W) of equal shape; the student's has been through a regressor.

    Source: Romero et al. 2015, equation 3, as a mean over all elements (RepDistiller ``distiller_zoo/FitNet.py``).
    """
    return F.mse_loss(student_map, teacher_map.detach())


@full_precision
def attention_transfer(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], *, p: int = 2) -> Tensor:
    """Sum over stages of the mean squared difference of normalised spatial attention maps.

    The attention map of F is mean_c |F|^p as a vector over positions, divided by its 2-norm. Where sizes differ, the
    larger feature map is average-pooled to the smaller one first.

    Args:
        student_maps, teacher_maps: one (B, C, H, W) per stage; channels may differ.
        p: power of the activations.

    Source: Zagoruyko & Komodakis 2017, equation 2, in the form of the authors' code. Agrees with goldens ``at_p2``,
    ``at_p2_resize``.
    """
    terms = []
    for s, t in zip(student_maps, teacher_maps, strict=True):
        t = t.detach()
        if s.shape[-1] > t.shape[-1]:
            s = F.adaptive_avg_pool2d(s, (t.shape[-2], t.shape[-1]))
        elif s.shape[-1] < t.shape[-1]:
            t = F.adaptive_avg_pool2d(t, (s.shape[-2], s.shape[-1]))
        terms.append(F.mse_loss(_attention(s, p), _attention(t, p)))
    return torch.stack(terms).sum()


def _attention(x: Tensor, p: int) -> Tensor:
    return unit(x.abs().pow(p).mean(1).flatten(1))
