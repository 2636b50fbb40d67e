"""Losses on the relations between the samples of a batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import full_precision, unit


@full_precision
def similarity_preserving(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Squared Frobenius distance of the row-normalised (B, B) Gram matrices, divided by B².

    Args:
        student_map, teacher_map: (B, ...), flattened per sample; their sizes may differ.

    Source: Tung & Mori 2019, section 3.1, for one pair of layers. Agrees with golden ``sp``.
    """
    return F.mse_loss(_gram(student_map), _gram(teacher_map.detach()))


@full_precision
def cosine_gram(student: Tensor, teacher: Tensor, *, first_row: bool = False) -> Tensor:
    """Mean squared difference of the (B, B) matrices of cosines between samples.

    Args:
        student, teacher: (B, ...), flattened per sample; their sizes may differ.
        first_row: compare the first sample's cosines only.

    Source: the similarity-preserving baseline of arXiv 2511.14981 (KD_wo_CE @3abceed), whose code reads one row.
    """
    s, t = (unit(x.flatten(1)) for x in (student, teacher.detach()))
    rows = slice(0, 1) if first_row else slice(None)
    return F.mse_loss(s[rows] @ s.t(), t[rows] @ t.t())


@full_precision
def pkt(student_pooled: Tensor, teacher_pooled: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Probabilistic knowledge transfer: mean over all pairs (i, j) of P_t log(P_t / P_s).

    P holds the cosine similarities moved to [0, 1] and divided by their row sums.

    Args:
        student_pooled, teacher_pooled: (B, D_s), (B, D_t).
        eps: keeps the logarithm finite.

    Source: Passalis & Tefas 2018 with the cosine kernel, in the form of the authors' code. Agrees with golden ``pkt``.
    """
    s, t = _neighbours(student_pooled), _neighbours(teacher_pooled.detach())
    # log1p, and the difference of the row sums, which is zero up to rounding and whose rounding is that of the first
    # term: in fp32 the plain form cancels to four digits.
    return (t * torch.log1p((t - s) / (s + eps)) - (t - s)).mean()


@full_precision
def rkd(
    student_pooled: Tensor, teacher_pooled: Tensor, *, distance_weight: float, angle_weight: float, eps: float = 1e-12
) -> Tensor:
    """Relational distillation: Huber losses on pairwise distances and on the angles of all triplets.

    Distances are divided by their mean over the pairs of distinct samples; the angle of (i, j, k) enters as the cosine
    at j.

    Args:
        student_pooled, teacher_pooled: (B, D_s), (B, D_t) with B >= 2.
        distance_weight, angle_weight: weights of the two terms.
        eps: smallest squared distance; keeps the root's gradient finite.

    Source: Park et al. 2019, section 3.2. Agrees with golden ``rkd``.
    """
    distances, angles = _relations(student_pooled.flatten(1), eps)
    with torch.no_grad():
        target_distances, target_angles = _relations(teacher_pooled.flatten(1), eps)
    distance = F.smooth_l1_loss(distances, target_distances)
    return distance_weight * distance + angle_weight * F.smooth_l1_loss(angles, target_angles)


@full_precision
def correlation_congruence(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """Mean over neighbouring rows of sum_d Delta_i,d Delta_i+1,d, with Delta = |e_s - e_t|.

    Depends on the order of the batch.

    Args:
        student_embedding, teacher_embedding: (B, D) with B >= 2.

    Source: RepDistiller ``distiller_zoo/CC.py``, which has it from an author; not the paper's formula, see
    :func:`kernel_congruence`. Agrees with golden ``cc``.
    """
    delta = (student_embedding - teacher_embedding.detach()).abs()
    return (delta[:-1] * delta[1:]).sum(1).mean()


@full_precision
def kernel_congruence(student_pooled: Tensor, teacher_pooled: Tensor, *, gamma: float, order: int) -> Tensor:
    """Mean squared difference of the (B, B) correlation matrices under a truncated Gaussian kernel.

    K_ij = exp(-2 gamma) sum_{p=0}^{order} (2 gamma)^p / p! (f_i . f_j)^p on rows f of length 1: the Taylor series of
    exp(-gamma |f_i - f_j|²).

    Args:
        student_pooled, teacher_pooled: (B, D_s), (B, D_t).
        gamma: width of the kernel.
        order: last power of the series.

    Source: Peng et al. 2019, section 3.3.
    """
    return F.mse_loss(_kernel(student_pooled, gamma, order), _kernel(teacher_pooled.detach(), gamma, order))


@full_precision
def correlation_information(student: Tensor, teacher: Tensor, *, alpha: float) -> Tensor:
    """log2 of sum_i |r_i - 1|^(2 alpha), r_i the correlation over the batch of dimension i.

    As in the authors' code r_i is the unbiased covariance scaled by (B - 1) / B, so that it stays below 1.

    Args:
        student, teacher: (B, D) vectors; the student's are embedded.
        alpha: exponent.

    Source: Miles et al. 2022 in the form of the authors' ``distiller_zoo/IT.py``.
    """
    n = len(student)
    s, t = (unit(x - x.mean(0), dim=0) for x in (student, teacher.detach()))
    correlation = (s * t).sum(0) * (n - 1) / n
    return (correlation - 1).abs().pow(2 * alpha).sum().log2()


@full_precision
def mutual_information(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of G_s² - G_st², cosine Gram matrices (B, B) of unit trace; G_st is G_s G_t elementwise.

    Args:
        student, teacher: (B, D_s), (B, D_t).

    Source: Miles et al. 2022 in the form of the authors' ``distiller_zoo/IT.py``.
    """
    s, t = unit(student), unit(teacher.detach())
    gram = s @ s.t()
    joint = gram * (t @ t.t())
    gram, joint = (x / x.trace().clamp_min(1e-12) for x in (gram, joint))
    return (gram.pow(2) - joint.pow(2)).sum()


@full_precision
def bank_scores(embedding: Tensor, bank: Tensor, picks: Tensor, *, temperature: float) -> Tensor:
    """Products (B, M) of normalised embeddings with chosen entries of a memory bank, divided by the temperature.

    Args:
        embedding: (B, D).
        bank: (N, D) entries of length 1.
        picks: (B, M) positions in the bank.
        temperature: tau.

    Source: Tian et al. 2020, section 3.2. All N products are formed and M picked: gathering M entries a row would take
    D times the memory.
    """
    return (unit(embedding) @ bank.t()).gather(1, picks) / temperature


@full_precision
def noise_contrastive(log_scores: Tensor, *, num_samples: int) -> Tensor:
    """-log h(positive) - sum over negatives log(1 - h), averaged over rows, with h = P / (P + M / N).

    Args:
        log_scores: (B, 1 + M) log P of the positive (first) and of M negatives.
        num_samples: N, the number of samples that negatives are drawn from.

    Source: Tian et al. 2020, equation 18, in the form of RepDistiller ``crd/criterion.py``, in logarithms.
    """
    odds = log_scores - math.log((log_scores.shape[1] - 1) / num_samples)
    return -(F.logsigmoid(odds[:, 0]) + F.logsigmoid(-odds[:, 1:]).sum(1)).mean()


@full_precision
def discriminative_consistent(similarity: Tensor, *, alpha: float) -> Tensor:
    """In-batch InfoNCE over rows plus alpha KL(softmax over columns || softmax over rows), averaged over rows.

    Args:
        similarity: (B, B) scaled similarities of the student's row i and the teacher's row j.
        alpha: weight of the consistency term.

    Source: Giakoumoglou & Stathaki 2024, in the form of the authors' ``DCD.py``.
    """
    rows, columns = F.log_softmax(similarity, 1), F.log_softmax(similarity, 0).t()
    consistency = F.kl_div(rows, columns, reduction="batchmean", log_target=True)
    return alpha * consistency - rows.diagonal().mean()


@full_precision
def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosines (B_a, B_b) of all rows of ``a`` (B_a, D) with all rows of ``b`` (B_b, D)."""
    return unit(a) @ unit(b).t()


@full_precision
def skd(student_logits: Tensor, teacher_logits: Tensor, *, ridge: float = 0.1, by_classes: bool = True) -> Tensor:
    """Mean over rows of sqrt(D_i S^-1 D_i'), the length of the row of D = G_s - G_t under its covariance S.

    G is the (B, B) matrix of the rows' cosines, S the covariance of D's columns plus ridge on the diagonal. The
    gradient runs through S, too; where student and teacher agree it is zero.

    Args:
        student_logits, teacher_logits: (B, K) with B >= 2.
        ridge: keeps S invertible.
        by_classes: divide the matrices of cosines by K, as the authors do; torchdistill does not.

    Source: Jeong et al. 2026, the direction term of HyunJunSik/StreamLined ``Distiller/SKD.py`` @7458628.
    """
    s, t = (unit(z) @ unit(z).t() for z in (student_logits, teacher_logits.detach()))
    difference = (s - t) / (student_logits.shape[1] if by_classes else 1)
    centred = difference - difference.mean(0)
    covariance = centred.t() @ centred / (len(s) - 1) + ridge * torch.eye(len(s), device=s.device, dtype=s.dtype)
    # With S = L L' the length is that of L^-1 D_i, whose gradient at zero is zero; that of a square root is not.
    # The ridge makes S positive definite, so the device is not waited for to check it.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky_ex(covariance).L, difference.t(), upper=False)
    return torch.linalg.vector_norm(whitened, dim=0).mean()


def _gram(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return unit(flat @ flat.t())


def _kernel(x: Tensor, gamma: float, order: int) -> Tensor:
    x = unit(x)
    cosine = x @ x.t()
    series = [(2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(series).sum(0)


def _neighbours(x: Tensor) -> Tensor:
    x = unit(x)
    similarity = (x @ x.t() + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


def _relations(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalised distances (B, B) and cosines (B, B, B), both from the Gram matrix.

    With e_ij = x_i - x_j, e_ij . e_kj = G_ik - G_ij - G_jk + G_jj: nothing of size B x B x D is ever formed. The
    differences cancel, so they are taken in fp64, on centred vectors.
    """
    precision = x.dtype
    x = x.double()
    x = x - x.mean(0).detach()
    gram = x @ x.t()
    square = gram.diagonal()
    distinct = 1 - torch.eye(len(x), device=x.device, dtype=x.dtype)
    squared = (square.unsqueeze(0) + square.unsqueeze(1) - 2 * gram) * distinct
    distances = squared.clamp_min(eps).sqrt()
    # Coinciding samples have no direction; like a zero vector under normalisation, they give cosine 0.
    inverse = distinct * (squared > 1e-12 * (square.unsqueeze(0) + square.unsqueeze(1))) / distances
    products = gram.unsqueeze(0) - gram.unsqueeze(2) - gram.unsqueeze(1) + square.view(-1, 1, 1)
    cosines = products * inverse.unsqueeze(2) * inverse.unsqueeze(1)
    distances = distances * distinct
    distances = distances * (len(x) * (len(x) - 1)) / distances.sum()
    return distances.to(precision), cosines.to(precision)
