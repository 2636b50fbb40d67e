"""Losses on hidden states (B, L, D) and attention of text encoders; padding counts for nothing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import full_precision


@full_precision
def hidden_states(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of hidden states over all values of the tokens that are no padding.

    Args:
        student, teacher: (B, L, D).
        mask: (B, L), true where there is a token.

    Source: Jiao et al. 2020 (TinyBERT), equations 8 and 9, which average over padding too.
    """
    return (student - teacher.detach()).square().mean(2)[mask].mean()


@full_precision
def attention_scores(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor, *, heads: int
) -> Tensor:
    """Mean squared error of the attention scores before the softmax, over pairs of tokens that are no padding.

    Args:
        student, teacher: queries and keys (B, L, D), all heads side by side; widths may differ.
        mask: (B, L), true where there is a token.
        heads: number of attention heads, the same in both.

    Source: Jiao et al. 2020 (TinyBERT), equation 7, which averages over padding too.
    """
    a, b = _scores(*student, heads), _scores(teacher[0].detach(), teacher[1].detach(), heads)
    pairs = mask[:, None, :, None] & mask[:, None, None, :]
    return (a - b).square().mean(1, keepdim=True)[pairs].mean()


@full_precision
def attention_relation(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor, *, heads: int
) -> Tensor:
    """KL divergence of rows softmax(A B^T / sqrt(d)), over heads and the tokens that are no padding.

    With queries and keys these are attention distributions, with values twice the relation of values.

    Args:
        student, teacher: A and B, (B, L, D) each, all heads side by side; widths may differ.
        mask: (B, L), true where there is a token.
        heads: number of heads, the same in both.

    Source: Wang et al. 2020 (MiniLM), equations 5 to 9.
    """
    padding = ~mask[:, None, None, :]
    log_s, log_t = (
        F.log_softmax(_scores(a, b, heads).masked_fill(padding, torch.finfo(torch.float32).min), 3)
        for a, b in (student, (teacher[0].detach(), teacher[1].detach()))
    )
    rows = (log_t.exp() * (log_t - log_s)).masked_fill(padding, 0.0).sum(3).mean(1)
    return rows[mask].mean()


@full_precision
def patient_states(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of unit vectors: the patient teacher's term.

    Args:
        student, teacher: (B, N, D), the first token's hidden states of N layers.

    Source: Sun et al. 2019 (PKD), equation 7, averaged over all values as in the authors' ``src/KD_loss.py`` (the paper
    sums over layers and values).
    """
    return F.mse_loss(F.normalize(student, dim=2), F.normalize(teacher.detach(), dim=2))


def _scores(a: Tensor, b: Tensor, heads: int) -> Tensor:
    """(B, heads, L, L)."""
    a, b = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (a, b))
    return a @ b.transpose(2, 3) / math.sqrt(a.shape[3])
