"""Losses on logits (B, K) that are standardised first: row by row, or by the batch class by class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import full_precision
from .logit import _kl, abkd, kd


@full_precision
def standardize(logits: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Logits (B, K) with each row's mean subtracted, divided by its (unbiased) standard deviation.

    Rows whose deviation is below ``eps`` become zero and receive zero gradient.

    Source: Sun et al. 2024, algorithm 1.
    """
    centred = logits - logits.mean(1, keepdim=True)
    deviation = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / (logits.shape[1] - 1) ** 0.5
    return centred / (deviation + eps).masked_fill(deviation <= eps, torch.inf)


def logit_standardized_kd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """:func:`kd` of standardised logits.

    Args:
        student_logits, teacher_logits: (B, K).
        temperature: T, in units of the standard deviation.

    Source: Sun et al. 2024, algorithm 2. Agrees with golden ``lskd_T2``.
    """
    return kd(standardize(student_logits), standardize(teacher_logits), temperature=temperature)


def logit_standardized_abkd(
    student_logits: Tensor, teacher_logits: Tensor, *, alpha: float, beta: float, temperature: float
) -> Tensor:
    """T² times :func:`abkd` of standardised logits.

    Args:
        student_logits, teacher_logits: (B, K).
        alpha, beta: exponents.
        temperature: T, in units of the standard deviation.

    Source: ghwang-s/abkd ``distiller_zoo/ls.py`` @df81318.
    """
    s, t = standardize(student_logits), standardize(teacher_logits)
    return temperature**2 * abkd(s, t, alpha=alpha, beta=beta, temperature=temperature)


@full_precision
def luminet(
    student_logits: Tensor, teacher_logits: Tensor, *, alpha: float, temperature: float, eps: float = 1e-5
) -> Tensor:
    """alpha² KL of softmaxes of logits that the batch standardises class by class: (z - mean) / sqrt(var + eps).

    Args:
        student_logits, teacher_logits: (B, K) with B >= 2; each is standardised by itself, with biased variances.
        alpha: factor in the place of T.
        temperature: T of both softmaxes.
        eps: added to the variances.

    Source: Hossain et al. 2025 in the form of ismail31416/LumiNet ``mdistiller/distillers/Luminet.py`` @8cf749b.
    """
    log_s, log_t = (
        F.log_softmax((z - z.mean(0)) / (z.var(0, unbiased=False) + eps).sqrt() / temperature, 1)
        for z in (student_logits, teacher_logits.detach())
    )
    return alpha**2 * _kl(log_s, log_t)
