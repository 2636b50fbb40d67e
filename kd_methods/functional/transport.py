"""Wasserstein distances: of class probabilities, and of Gaussians fitted to feature maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import full_precision


@full_precision
def wkd_l(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    cost: Tensor,
    *,
    gamma: float,
    temperature: float,
    regularization: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    """-p_t[y] log p_s[y] + gamma OT(q_s, q_t), averaged over rows.

    p are the softmaxes at temperature 1, q those at T over the classes other than the label. OT = sum plan * cost,
    where Sinkhorn's iteration with the kernel exp(-cost / regularization) gives the plan; the gradient runs through
    all of its rounds.

    Args:
        student_logits, teacher_logits: (B, K).
        labels: (B,) class indices.
        cost: (K, K) of moving mass from one class to another; below zero it counts as zero, and 1e-8 is added.
        gamma: weight of the transport.
        temperature: T of the transported probabilities.
        regularization: entropic regularisation.
        iterations: rounds of Sinkhorn's iteration.

    Source: Lv et al. 2024 (WKD-L) in the form of JiamingLv/WKD ``mdistiller/distillers/WKD.py`` @214cf88. The code
    cuts row and column of the label out of a cost matrix per image, (B, K - 1, K - 1); here the label has no mass, so
    that one (K, K) matrix serves all.
    """
    teacher_logits, label = teacher_logits.detach(), labels.unsqueeze(1)
    target_s, target_t = (F.log_softmax(z, 1).gather(1, label) for z in (student_logits, teacher_logits))
    # The least number, and not -inf, whose gradient would be NaN where the label is all there is.
    least = torch.finfo(teacher_logits.dtype).min
    q_s, q_t = (
        F.softmax((z / temperature).scatter(1, label, least), 1).scatter(1, label, 0.0)
        for z in (student_logits, teacher_logits)
    )
    cost = cost.detach().to(q_s).clamp_min(0) + 1e-8
    kernel = torch.exp(-cost / regularization)
    u = torch.full_like(q_s, 1 / (q_s.shape[1] - 1)).scatter(1, label, 0.0)
    v = u
    for _ in range(iterations):
        v = q_t / (u @ kernel + 1e-8)
        u = q_s / (v @ kernel.t() + 1e-8)
    transport = ((u @ (kernel * cost)) * v).sum(1).mean()
    return gamma * transport - (target_t.exp() * target_s).mean()


@full_precision
def wkd_f(student_map: Tensor, teacher_map: Tensor, *, ratio: float, grid: int = 1, eps: float = 1e-5) -> Tensor:
    """ratio * sum (mu_s - mu_t)² + sum (sigma_s - sigma_t)², over grid² B: mu, sigma of each channel in each cell.

    Args:
        student_map, teacher_map: (B, C, H, W) of equal shape; the student's has been through a regressor.
        ratio: weight of the means against the deviations.
        grid: the map is cut into grid x grid cells, as adaptive pooling does; a cell has two positions at least.
        eps: added to the unbiased variances.

    Raises:
        ValueError: a cell has one position, whose variance is undefined.

    Source: Lv et al. 2024 (WKD-F), diagonal covariances, in the form of JiamingLv/WKD ``mdistiller/distillers/WKD.py``
    @214cf88.
    """
    (mean_s, deviation_s), (mean_t, deviation_t) = (_moments(x, grid, eps) for x in (student_map, teacher_map.detach()))
    means, deviations = (mean_s - mean_t).square().sum(), (deviation_s - deviation_t).square().sum()
    return (ratio * means + deviations) / (grid**2 * len(student_map))


def _moments(x: Tensor, grid: int, eps: float) -> tuple[Tensor, Tensor]:
    """Means and deviations (grid², B, C) of the cells of a map."""
    rows, columns = ([slice(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)] for size in x.shape[2:])
    cells = [x[:, :, row, column].flatten(2) for row in rows for column in columns]
    if min(cell.shape[2] for cell in cells) < 2:
        raise ValueError(f"cells of a {grid} x {grid} grid on maps {tuple(x.shape[2:])} have single positions")
    return (
        torch.stack([cell.mean(2) for cell in cells]),
        torch.stack([(cell.var(2) + eps).sqrt() for cell in cells]),
    )
