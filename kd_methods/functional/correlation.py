"""Losses on how softmaxes of logits (B, K) correlate, over the classes of a row and over the rows of a class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import full_precision


@full_precision
def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float,
    gamma: float,
    temperature: float = 1.0,
    eps: float = 1e-8,
) -> Tensor:
    """T² [beta (1 - correlation over classes, per row) + gamma (1 - correlation over rows, per class)] of softmaxes.

    Args:
        student_logits, teacher_logits: (B, K).
        beta, gamma: weights of the relation within a row and of the one within a class.
        temperature: T.
        eps: added to the denominators; rare classes, whose probabilities hardly vary, are felt less with a larger one.

    Source: Huang et al. 2022, equations 7 to 10; the factor T² is in the authors' code. Agrees with golden ``dist``.
    """
    p_s = F.softmax(student_logits / temperature, 1)
    p_t = F.softmax(teacher_logits.detach() / temperature, 1)
    inter, intra = 1 - _pearson(p_s, p_t, eps).mean(), 1 - _pearson(p_s.t(), p_t.t(), eps).mean()
    return temperature**2 * (beta * inter + gamma * intra)


@full_precision
def class_correlation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """||P_s' P_s - P_t' P_t||_F² / K, P (B, K) the softmaxes at temperature T.

    Args:
        student_logits, teacher_logits: (B, K).
        temperature: T.

    Source: Jin et al. 2023, class-level alignment. Agrees with golden ``mlkd_class_T4``.
    """
    p_s, p_t = _probabilities(student_logits, teacher_logits, temperature)
    return (p_t.t() @ p_t - p_s.t() @ p_s).square().sum() / p_s.shape[1]


@full_precision
def batch_correlation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """||P_s P_s' - P_t P_t'||_F² / B, P (B, K) the softmaxes at temperature T.

    Args:
        student_logits, teacher_logits: (B, K).
        temperature: T.

    Source: Jin et al. 2023, batch-level alignment. Agrees with golden ``mlkd_batch_T4``.
    """
    p_s, p_t = _probabilities(student_logits, teacher_logits, temperature)
    return (p_t @ p_t.t() - p_s @ p_s.t()).square().sum() / p_s.shape[0]


def _probabilities(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return F.softmax(student_logits / temperature, 1), F.softmax(teacher_logits.detach() / temperature, 1)


def _pearson(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Correlation of the rows of two matrices, 0 where one of them is constant."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(1) / (norms + eps)
