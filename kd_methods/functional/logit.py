"""Losses on logits (B, K)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import full_precision


@full_precision
def kd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Hinton's distillation term: T² KL(softmax(t/T) || softmax(s/T)), summed over classes, averaged over rows.

    Args:
        student_logits, teacher_logits: (B, K).
        temperature: T.

    Source: Hinton et al. 2015, section 2, with the factor T² recommended there. Agrees with goldens ``kd_T1``,
    ``kd_T4``.
    """
    log_s = F.log_softmax(student_logits / temperature, 1)
    log_t = F.log_softmax(teacher_logits.detach() / temperature, 1)
    return temperature**2 * _kl(log_s, log_t)


@full_precision
def dkd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, alpha: float, beta: float, temperature: float
) -> Tensor:
    """Decoupled distillation: T² [alpha KL(b_t || b_s) + beta KL(q_t || q_s)], averaged over rows.

    b is (mass of the label's class, mass of all others), q the softmax over the other classes alone.

    Args:
        student_logits, teacher_logits: (B, K).
        labels: (B,) class indices.
        alpha, beta: weights of the target and the non-target term.
        temperature: T.

    Source: Zhao et al. 2022, equation 7. Agrees with goldens ``dkd``, ``dkd_beta2_T1``. The reference code masks the
    label's class with -1000 and takes the logarithm of a softmax sum; here the class is left out and all stays in logs.
    """
    binary_s, others_s = _decoupled(student_logits / temperature, labels)
    binary_t, others_t = _decoupled(teacher_logits.detach() / temperature, labels)
    return temperature**2 * (alpha * _kl(binary_s, binary_t) + beta * _kl(others_s, others_t))


def _kl(log_s: Tensor, log_t: Tensor) -> Tensor:
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def _decoupled(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, 2) of label's class against the rest, and (B, K - 1) within the rest."""
    target = labels.unsqueeze(1)
    position = torch.arange(z.shape[1] - 1, device=z.device).expand(z.shape[0], -1)
    others = z.gather(1, position + (position >= target))
    binary = torch.cat([z.gather(1, target), others.logsumexp(1, keepdim=True)], 1)
    return F.log_softmax(binary, 1), F.log_softmax(others, 1)
