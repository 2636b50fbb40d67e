"""Losses against several networks at once: teachers, or peers that learn together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import full_precision
from .logit import _kl_rows, kd


@full_precision
def mutual_learning(student_logits: Tensor, peer_logits: Sequence[Tensor]) -> Tensor:
    """Sum over peers of KL(softmax(peer) || softmax(student)), averaged over rows.

    Args:
        student_logits: (B, K).
        peer_logits: one (B, K) a peer; constants.

    Source: Zhang et al. 2018 (deep mutual learning), as the sum over peers of YingZhangDUT/Deep-Mutual-Learning
    ``train_models.py`` @34a2058; the paper divides by their number.
    """
    return torch.stack([kd(student_logits, peer, temperature=1.0) for peer in peer_logits]).sum()


@full_precision
def average_kd(student_logits: Tensor, teacher_logits: Sequence[Tensor], *, temperature: float) -> Tensor:
    """Mean over teachers of :func:`~kd_methods.functional.kd`.

    Args:
        student_logits: (B, K).
        teacher_logits: one (B, K) a teacher.
        temperature: T.

    Source: the average baseline of Zhang et al. 2022, Rorozhl/CA-MKD @c2f39a9.
    """
    return torch.stack([kd(student_logits, t, temperature=temperature) for t in teacher_logits]).mean()


@full_precision
def ca_mkd(student_logits: Tensor, teacher_logits: Sequence[Tensor], labels: Tensor, *, temperature: float) -> Tensor:
    """Sum over teachers m of w_m T² KL_m, averaged over rows and teachers; w_m = (1 - softmax_m(CE_m)) / (M - 1).

    Args:
        student_logits: (B, K).
        teacher_logits: M >= 2 of (B, K).
        labels: (B,) class indices, for the teachers' cross-entropies CE_m.
        temperature: T of the divergence.

    Source: Zhang et al. 2022 in the form of Rorozhl/CA-MKD ``distiller_zoo/CAMKD.py`` @c2f39a9, which divides by M
    although the weights of a row sum to 1.
    """
    weights = _confidence([t.detach() for t in teacher_logits], labels)
    return temperature**2 * (weights * _divergences(student_logits, teacher_logits, temperature)).mean()


@full_precision
def ebkd(student_logits: Tensor, teacher_logits: Sequence[Tensor], *, temperature: float) -> Tensor:
    """As :func:`ca_mkd` with w_m = 1 - H_m / sum H, H the entropies of the teachers' softmaxes at temperature 1.

    Args:
        student_logits: (B, K).
        teacher_logits: M of (B, K), not all of them without entropy.
        temperature: T of the divergence.

    Source: the entropy-based baseline (Kwon et al. 2020) as Rorozhl/CA-MKD @c2f39a9 has it.
    """
    log_p = F.log_softmax(torch.stack([t.detach() for t in teacher_logits]), 2)
    entropy = -(log_p.exp() * log_p).sum(2)
    weights = 1 - entropy / entropy.sum(0)
    return temperature**2 * (weights * _divergences(student_logits, teacher_logits, temperature)).mean()


@full_precision
def ca_mkd_features(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], scores: Sequence[Tensor], labels: Tensor
) -> Tensor:
    """Sum over teachers m of w_m times an image's mean squared error, averaged over images and teachers.

    w_m is that of :func:`ca_mkd`, from the cross-entropies of ``scores``; the gradient runs through it, too.

    Args:
        student_maps: M of (B, C_m, H_m, W_m), the student's map projected for every teacher.
        teacher_maps: M of the same shapes.
        scores: M of (B, K), what teacher m's classifier makes of the student's map projected for it.
        labels: (B,) class indices.

    Source: Zhang et al. 2022 in the form of Rorozhl/CA-MKD ``helper/loops.py`` @c2f39a9.
    """
    pairs = zip(student_maps, teacher_maps, strict=True)
    errors = torch.stack([(s - t.detach()).square().flatten(1).mean(1) for s, t in pairs])
    return (_confidence(scores, labels) * errors).mean()


def _confidence(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """(M, B): the smaller a network's cross-entropy, the larger its weight; those of a row sum to 1."""
    losses = torch.stack([F.cross_entropy(z, labels, reduction="none") for z in logits])
    return (1 - losses.softmax(0)) / (len(losses) - 1)


def _divergences(student_logits: Tensor, teacher_logits: Sequence[Tensor], temperature: float) -> Tensor:
    """(M, B): KL of every teacher and row."""
    log_s = F.log_softmax(student_logits / temperature, 1)
    return torch.stack([_kl_rows(log_s, F.log_softmax(t.detach() / temperature, 1)) for t in teacher_logits])
