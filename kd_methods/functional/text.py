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
    return _relation_rows(student, (teacher[0].detach(), teacher[1].detach()), mask, heads)[mask].mean()


@full_precision
def minilmv2(
    student: tuple[Tensor, Tensor, Tensor], teacher: tuple[Tensor, Tensor, Tensor], mask: Tensor, *, heads: int
) -> Tensor:
    """Sum over queries, keys and values of the KL divergence of rows softmax(X X^T / sqrt(d)).

    The mean is over relation heads and over a text's tokens that are no padding, then over texts.

    Args:
        student, teacher: queries, keys and values, (B, L, D) each; widths may differ.
        mask: (B, L), true where there is a token.
        heads: number of relation heads that D is split into anew, whatever the networks' own are.

    Source: Wang et al. 2021 (MiniLMv2), equations 2 to 4, as bloomberg/minilmv2.bb ``minilmv2/minilmv2.py`` @0d78e20
    has it.
    """
    count = mask.sum(1).clamp_min(1)
    terms = [
        ((_relation_rows((s, s), (t.detach(), t.detach()), mask, heads) * mask).sum(1) / count).mean()
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).sum()


@full_precision
def patient_states(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of unit vectors: the patient teacher's term.

    Args:
        student, teacher: (B, N, D), the first token's hidden states of N layers.

    Source: Sun et al. 2019 (PKD), equation 7, averaged over all values as in the authors' ``src/KD_loss.py`` (the paper
    sums over layers and values).
    """
    return F.mse_loss(F.normalize(student, dim=2), F.normalize(teacher.detach(), dim=2))


def _relation_rows(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor, heads: int) -> Tensor:
    """(B, L): the divergence of a token's rows softmax(A B^T / sqrt(d)), mean over heads."""
    padding = ~mask[:, None, None, :]
    log_s, log_t = (
        F.log_softmax(_scores(a, b, heads).masked_fill(padding, torch.finfo(torch.float32).min), 3)
        for a, b in (student, teacher)
    )
    return (log_t.exp() * (log_t - log_s)).masked_fill(padding, 0.0).sum(3).mean(1)


def _scores(a: Tensor, b: Tensor, heads: int) -> Tensor:
    """(B, heads, L, L)."""
    a, b = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (a, b))
    return a @ b.transpose(2, 3) / math.sqrt(a.shape[3])
