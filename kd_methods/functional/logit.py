"""Losses on logits (B, K)."""

from __future__ import annotations

from collections.abc import Sequence

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
    return (weight * _kl_rows(log_s, log_q)).mean()


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
    target = (labels[:, None] == torch.arange(student_logits.shape[1], device=labels.device)).long()
    weight = (F.softmax(teacher_logits.detach() / temperature, 1) + target) ** eps - target
    return -(weight * F.log_softmax(student_logits / temperature, 1)).sum(1).mean()


@full_precision
def wsld(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float, eps: float = 1e-7
) -> Tensor:
    """T² times soft cross-entropy at temperature T, each row weighted by 1 - exp(-CE_s / CE_t), averaged over rows.

    Args:
        student_logits, teacher_logits: (B, K).
        labels: (B,) class indices or (B, K) soft labels; CE_s and CE_t are the cross-entropies against them, constants
            in the gradient.
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
def rld(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float,
    alpha_temperature: float,
) -> Tensor:
    """Refined logits: alpha T_a² KL(m_t || s_y) + beta T² KL(q_t || q_s), averaged over rows.

    m_t is (largest probability of the teacher, the rest), whatever class it belongs to, s_y is (the student's of the
    label, the rest), both at T_a; q is the softmax at T over the classes that the teacher gives a smaller logit than
    the label. A row whose label has the teacher's smallest logit adds nothing to the second term.

    Args:
        student_logits, teacher_logits: (B, K).
        labels: (B,) class indices.
        alpha, beta: weights of the sample's confidence and of the masked correlation.
        temperature: T of the second term.
        alpha_temperature: T_a of the first term.

    Source: Sun et al. 2025, sample confidence and masked correlation distillation, in the form of zju-SWJ/RLD
    ``mdistiller/distillers/RLD.py`` @d54578f. In logarithms throughout; the code takes that of a masked sum.
    """
    teacher_logits = teacher_logits.detach()
    confidence_s = _decoupled(student_logits / alpha_temperature, labels)[0]
    confidence_t = _decoupled(teacher_logits / alpha_temperature, teacher_logits.argmax(1))[0]
    masked = teacher_logits >= teacher_logits.gather(1, labels.unsqueeze(1))
    # The least number, and not -inf: with every class masked both softmaxes are uniform, and the row adds nothing.
    least = torch.finfo(teacher_logits.dtype).min
    log_s, log_t = (
        F.log_softmax((z / temperature).masked_fill(masked, least), 1) for z in (student_logits, teacher_logits)
    )
    confidence = alpha_temperature**2 * _kl(confidence_s, confidence_t)
    return alpha * confidence + beta * temperature**2 * _kl(log_s, log_t)


@full_precision
def abkd(student_logits: Tensor, teacher_logits: Tensor, *, alpha: float, beta: float, temperature: float) -> Tensor:
    """The alpha-beta-divergence of softened probabilities, averaged over rows; no factor T².

    D(p || q) = -1 / (alpha beta) sum_k [p^alpha q^beta - alpha / (alpha + beta) p^(alpha + beta)
    - beta / (alpha + beta) q^(alpha + beta)] with p the teacher's probabilities, q the student's. If a factor is zero:

    - alpha = 0: 1 / beta sum_k [q^beta log(q^beta / p^beta) - q^beta + p^beta]; with beta 1 it is KL(q || p)
    - beta = 0: 1 / alpha sum_k [p^alpha log(p^alpha / q^alpha) - p^alpha + q^alpha]; with alpha 1 it is KL(p || q)
    - both: 1/2 sum_k (log q - log p)²
    - alpha + beta = 0: 1 / alpha² sum_k [alpha log(q / p) + (p / q)^alpha - 1]

    Args:
        student_logits, teacher_logits: (B, K).
        alpha, beta: exponents; a negative one makes values of peaked distributions infinite.
        temperature: T of both softmaxes.

    Source: Wang et al. 2025 in the form of ghwang-s/abkd ``distiller_zoo/abkl.py`` @df81318. The first two cases are as
    there, the exponent times the limits of the family; in the last one the code has alpha times the limit, which is
    what stands here.
    """
    log_q = F.log_softmax(student_logits / temperature, 1)
    log_p = F.log_softmax(teacher_logits.detach() / temperature, 1)
    both, distance = alpha + beta, log_q - log_p
    if alpha == beta == 0:
        terms = distance.square() / 2
    elif both == 0:
        terms = (alpha * distance + torch.expm1(-alpha * distance)) / alpha**2
    elif alpha == 0 or beta == 0:
        log_a, log_b = (beta * log_q, beta * log_p) if alpha == 0 else (alpha * log_p, alpha * log_q)
        terms = (log_a.exp() * (log_a - log_b) - log_a.exp() + log_b.exp()) / both
    else:
        # The larger of the two probabilities is taken out of the bracket: nothing overflows, and it cancels exactly
        # where they agree.
        exponent = beta + (alpha - beta) * (distance > 0).to(distance)
        below = -distance.abs()
        bracket = torch.expm1(exponent * below) - exponent / both * torch.expm1(both * below)
        terms = -(both * torch.maximum(log_p, log_q)).exp() * bracket / (alpha * beta)
    return terms.sum(1).mean()


@full_precision
def crld(
    student_logits: Sequence[Tensor],
    teacher_logits: Sequence[Tensor],
    *,
    within_weight: float,
    cross_weight: float,
    within_threshold: float,
    cross_threshold: float,
    temperature: float,
    certain_by: Sequence[Tensor] | None = None,
) -> Tensor:
    """Consistency within and across two views, for rows of which the teacher is certain enough.

    w mean_i m_i^weak [k(s_weak, t_weak) + k(s_strong, t_strong)] + c mean_i m_i^strong [k(s_strong, t_weak) +
    k(s_weak, t_strong)], with k = T² KL(t || s) of a row, and m_i^view 1 where the teacher's largest probability (at
    temperature 1) of that view reaches the threshold, else 0. Rows that are left out count in the mean.

    Args:
        student_logits, teacher_logits: (B, K) of the weak and of the strong view.
        within_weight, cross_weight: w and c.
        within_threshold: of the weak view's probability, for the terms within a view.
        cross_threshold: of the strong view's probability, for the terms across views.
        temperature: T of all softmaxes.
        certain_by: (B, K) of both views, the logits that say how certain the teacher is where its own were changed.

    Source: Zhang et al. 2024 (CRLD) in the form of scx-822/CRLD-main ``mdistiller/distillers/CRLD.py`` @c9d6657.
    """
    (s_weak, s_strong), (t_weak, t_strong) = student_logits, [z.detach() for z in teacher_logits]
    certainty = [z.detach().softmax(1).amax(1) for z in certain_by or teacher_logits]
    sure_weak, sure_strong = certainty[0] >= within_threshold, certainty[1] >= cross_threshold

    def rows(s: Tensor, t: Tensor) -> Tensor:
        return temperature**2 * _kl_rows(F.log_softmax(s / temperature, 1), F.log_softmax(t / temperature, 1))

    within = (sure_weak * (rows(s_weak, t_weak) + rows(s_strong, t_strong))).mean()
    cross = (sure_strong * (rows(s_strong, t_weak) + rows(s_weak, t_strong))).mean()
    return within_weight * within + cross_weight * cross


def up_to_median(x: Tensor) -> Tensor:
    """Share of the entries of (N,) that are not above the median: what masks of MLLD's code make of averaged losses."""
    return (x <= x.quantile(0.5)).float().mean()


@full_precision
def tf_kd_reg(student_logits: Tensor, labels: Tensor, *, correct: float = 0.99, temperature: float = 20.0) -> Tensor:
    """KL(softmax(u / T) || softmax(s)) as a mean over all (B K) elements, u a hand-made teacher's probabilities.

    u is ``correct`` at the label and shared equally by the others. That the softmax is of probabilities makes the
    target almost uniform.

    Args:
        student_logits: (B, K); enter at temperature 1.
        labels: (B,) class indices.
        correct: u of the label.
        temperature: T.

    Source: Yuan et al. 2020 in the form of yuanli2333/Teacher-free-Knowledge-Distillation ``my_loss_function.py``
    @d000ab3, whose multiplier and weights stay outside.
    """
    k = student_logits.shape[1]
    virtual = torch.full_like(student_logits, (1 - correct) / (k - 1)).scatter(1, labels.unsqueeze(1), correct)
    return _kl(F.log_softmax(student_logits, 1), F.log_softmax(virtual / temperature, 1)) / k


@full_precision
def hard_distillation(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy against the class that the teacher finds most likely.

    Args:
        student_logits, teacher_logits: (B, K).

    Source: Touvron et al. 2021, equation 3.
    """
    return F.cross_entropy(student_logits, teacher_logits.argmax(1))


def _kl(log_s: Tensor, log_t: Tensor) -> Tensor:
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def _kl_rows(log_s: Tensor, log_t: Tensor) -> Tensor:
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)


def _decoupled(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, 2) of label's class against the rest, and (B, K - 1) within the rest."""
    target = labels.unsqueeze(1)
    position = torch.arange(z.shape[1] - 1, device=z.device).expand(z.shape[0], -1)
    others = z.gather(1, position + (position >= target))
    binary = torch.cat([z.gather(1, target), others.logsumexp(1, keepdim=True)], 1)
    return F.log_softmax(binary, 1), F.log_softmax(others, 1)
