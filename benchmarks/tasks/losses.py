"""Losses of classification, for labels (B,) or soft labels (B, K)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .augmentation.mixing import smoothed


def full(logits: Tensor) -> Tensor:
    """Logits of half precision in fp32, so that a loss does not lose digits."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def cross_entropy(smoothing: float, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch; soft labels (B, K) are taken as they are."""
    if labels.dim() == 2:
        return F.cross_entropy(full(logits), labels)
    return F.cross_entropy(full(logits), labels, label_smoothing=smoothing)


def binary_cross_entropy(smoothing: float, logits: Tensor, labels: Tensor) -> Tensor:
    """As :func:`cross_entropy`, with a sigmoid for every class: mean over batch and classes."""
    shares = labels if labels.dim() == 2 else smoothed(labels, logits.shape[1], smoothing)
    return F.binary_cross_entropy_with_logits(full(logits), shares)


LOSSES = {"ce": cross_entropy, "bce": binary_cross_entropy}
"""By their names in protocols."""
