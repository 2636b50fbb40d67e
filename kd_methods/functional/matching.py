"""Losses on the scores (…, K) of local features against templates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._precision import full_precision


@full_precision
def word_matching(scores: Tensor, features: Tensor, words: Tensor, *, inverse_temperature: float = 1.0) -> Tensor:
    """KL divergence between the teacher's soft assignment to words and the softmax of the student's scores.

    The target of a location is softmax_k(-inverse_temperature * ||z - word_k||²); the mean is over locations.

    Args:
        scores: (N, K) of the student's locations.
        features: (N, D) of the teacher's, not normalised.
        words: (K, D).
        inverse_temperature: factor on the squared distances.

    Source: letKD (arXiv 2309.02843) and its code, section 2.2 of QuEST's lineage; the supplement's algorithm writes
    the distances without the minus.
    """
    # ||z||² is the same for all words and drops out of the softmax.
    offsets = -inverse_temperature * words.pow(2).sum(1)

    def teacher(rows: slice) -> tuple[Tensor, Tensor]:
        closeness = torch.addmm(offsets, features[rows], words.t(), alpha=2 * inverse_temperature)
        targets = torch.softmax(closeness, 1)
        return targets, _expected_log(targets, targets, closeness)

    return _MeanDivergence.apply(scores, teacher)


@full_precision
def decision_matching(scores: Tensor, targets: Tensor) -> Tensor:
    """KL divergence between given decisions and the softmax of the student's scores, mean over locations.

    Args:
        scores: (N, K) of the student's locations.
        targets: (N, K), rows that sum to 1; zeros count nothing.

    Source: letKD (arXiv 2309.02843), supplement algorithm 2.
    """

    def teacher(rows: slice) -> tuple[Tensor, Tensor]:
        return targets[rows], torch.xlogy(targets[rows], targets[rows]).sum(1)

    return _MeanDivergence.apply(scores, teacher)


AT_ONCE = 2**18
"""Scores that are worked on together on a CPU: what is computed of them stays in its cache."""


class _MeanDivergence(torch.autograd.Function):
    """Mean over rows of KL(targets || softmax(scores)), the targets without a gradient.

    With 4096 words for each of 4096 locations it is matrices, and not products, that the loss costs. Of all that
    autograd would keep one is enough, the gradient itself, and no other is ever whole on a CPU.

    Args:
        scores: (N, K).
        teacher: gives, for a slice of the N rows, their targets (n, K) and sum over k of target log target (n,).
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, teacher: Callable[[slice], tuple[Tensor, Tensor]]) -> Tensor:
        count, templates = scores.shape
        step = max(1, AT_ONCE // templates) if scores.device.type == "cpu" else count
        gradient, total = torch.empty_like(scores), scores.new_zeros(())
        for start in range(0, count, step):
            rows = slice(start, start + step)
            targets, certainty = teacher(rows)
            probabilities = torch.softmax(scores[rows], 1, out=gradient[rows])
            total += (certainty - _expected_log(targets, probabilities, scores[rows])).sum()
            probabilities -= targets
        ctx.save_for_backward(gradient)
        return total / count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (difference,) = ctx.saved_tensors
        return difference * (gradient / len(difference)), None


def _expected_log(weights: Tensor, probabilities: Tensor, logits: Tensor) -> Tensor:
    """<weights, log_softmax(logits)> per row, where ``weights`` sum to 1 and ``probabilities`` are the softmax.

    The logarithm is taken of the largest probability only, and the others follow from the logits.
    """
    largest, at = probabilities.max(1)
    partition = logits.gather(1, at[:, None]).squeeze(1) - largest.log()
    return torch.linalg.vecdot(weights, logits) - partition
