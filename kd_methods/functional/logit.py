"""Losses on logits (B, K)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import full_precision


@full_precision
def kd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float | Tensor) -> Tensor:
    """Hinton's distillation term: T² KL(softmax(t/T) || softmax(s/T)), summed over classes, averaged over rows.

    A single output is a prediction of a number and no logit: there it is the mean squared error, whatever T.

    Args:
        student_logits, teacher_logits: (B, K).
        temperature: T; a scalar tensor receives gradients.

    Source: Hinton et al. 2015, section 2, with the factor T² recommended there. Agrees with goldens ``kd_T1``,
    ``kd_T4``.
    """
    if student_logits.shape[1] == 1:
        return F.mse_loss(student_logits, teacher_logits.detach())
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


@full_precision
def nkd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, gamma: float, temperature: float) -> Tensor:
    """Normalised distillation: -p_t[y] log p_s[y] - gamma T² sum_{i != y} q_t,i log q_s,i, averaged over rows.

    q is the softmax over the other classes alone, at temperature T; p is the softmax at temperature 1.

    Args:
        student_logits, teacher_logits: (B, K).
        labels: (B,) class indices.
        gamma: weight of the non-target term.
        temperature: T of the non-target term.

    Source: Yang et al. 2023, equation 5. Agrees with golden ``nkd``.
    """
    teacher_logits = teacher_logits.detach()
    target_s, target_t = (_decoupled(z, labels)[0][:, 0] for z in (student_logits, teacher_logits))
    others_s, others_t = (_decoupled(z / temperature, labels)[1] for z in (student_logits, teacher_logits))
    target = (target_t.exp() * target_s).mean()
    return -target - gamma * temperature**2 * (others_t.exp() * others_s).sum(1).mean()


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
def ttm(student_logits: Tensor, teacher_logits: Tensor, *, power: float) -> Tensor:
    """Transformed teacher matching: KL(q_t || p_s), q_t proportional to p_t^power, averaged over rows.

    Args:
        student_logits, teacher_logits: (B, K); the student's enter at temperature 1.
        power: exponent of the teacher's probabilities, an inverse temperature.

    Source: Zheng & Yang 2024, equation 9. Agrees with golden ``ttm_l0.1``.
    """
    return _kl(F.log_softmax(student_logits, 1), F.log_softmax(power * teacher_logits.detach(), 1))


@full_precision
def wttm(student_logits: Tensor, teacher_logits: Tensor, *, power: float) -> Tensor:
    """As :func:`ttm`, each row weighted by sum_k p_t,k^power: smooth teachers count more.

    Args:
        student_logits, teacher_logits: (B, K); the student's enter at temperature 1.
        power: exponent of the teacher's probabilities.

    Source: Zheng & Yang 2024, section 4.2. Agrees with golden ``wttm_l0.1``.
    """
    teacher_logits = teacher_logits.detach()
    weight = (power * F.log_softmax(teacher_logits, 1)).exp().sum(1)
    log_s, log_q = F.log_softmax(student_logits, 1), F.log_softmax(power * teacher_logits, 1)
    return (weight * F.kl_div(log_s, log_q, reduction="none", log_target=True).sum(1)).mean()


@full_precision
def ofa(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, eps: float, temperature: float = 1.0
) -> Tensor:
    """-sum_i [(p_t,i + 1_y)^eps - 1_y] log p_s,i, averaged over rows: soft labels with the target's share raised.

    Args:
        student_logits, teacher_logits: (B, K).
        labels: (B,) class indices.
        eps: exponent; 1 gives cross-entropy with the teacher's probabilities.
        temperature: of both softmaxes; no factor T².

    Source: Hao et al. 2023, equation 7, in the form of the authors' code. Agrees with goldens ``ofa_eps1.0``,
    ``ofa_eps1.5``.
    """
    target = F.one_hot(labels, student_logits.shape[1])
    weight = (F.softmax(teacher_logits.detach() / temperature, 1) + target) ** eps - target
    return -(weight * F.log_softmax(student_logits / temperature, 1)).sum(1).mean()


@full_precision
def wsld(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float, eps: float = 1e-7
) -> Tensor:
    """T² times soft cross-entropy at temperature T, each row weighted by 1 - exp(-CE_s / CE_t), averaged over rows.

    Args:
        student_logits, teacher_logits: (B, K).
        labels: (B,) class indices; CE_s and CE_t are the cross-entropies against them, constants in the gradient.
        temperature: T of the soft term; the weights use temperature 1.
        eps: added to CE_t.

    Source: Zhou et al. 2021, equation 10.
    """
    teacher_logits = teacher_logits.detach()
    student_loss = F.cross_entropy(student_logits.detach(), labels, reduction="none")
    weight = 1 - torch.exp(-student_loss / (F.cross_entropy(teacher_logits, labels, reduction="none") + eps))
    soft = F.softmax(teacher_logits / temperature, 1) * F.log_softmax(student_logits / temperature, 1)
    return -(temperature**2) * (weight * soft.sum(1)).mean()


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


def _kl(log_s: Tensor, log_t: Tensor) -> Tensor:
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def _decoupled(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, 2) of label's class against the rest, and (B, K - 1) within the rest."""
    target = labels.unsqueeze(1)
    position = torch.arange(z.shape[1] - 1, device=z.device).expand(z.shape[0], -1)
    others = z.gather(1, position + (position >= target))
    binary = torch.cat([z.gather(1, target), others.logsumexp(1, keepdim=True)], 1)
    return F.log_softmax(binary, 1), F.log_softmax(others, 1)


def _probabilities(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return F.softmax(student_logits / temperature, 1), F.softmax(teacher_logits.detach() / temperature, 1)


def _pearson(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Correlation of the rows of two matrices, 0 where one of them is constant."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(1) / (norms + eps)
