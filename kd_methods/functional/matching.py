"""Losses on the scores (…, K) of local features against templates."""

from __future__ import annotations

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
    closeness = torch.addmm(
        -inverse_temperature * words.pow(2).sum(1), features.detach(), words.t(), alpha=2 * inverse_temperature
    )
    targets = torch.softmax(closeness, 1)
    return _SoftCrossEntropy.apply(scores, targets) + _expected_log(targets, targets, closeness).mean()


@full_precision
def decision_matching(scores: Tensor, targets: Tensor) -> Tensor:
    """KL divergence between given decisions and the softmax of the student's scores, mean over locations.

    Args:
        scores: (N, K) of the student's locations.
        targets: (N, K), rows that sum to 1; zeros count nothing.

    Source: letKD (arXiv 2309.02843), supplement algorithm 2.
    """
    targets = targets.detach()
    return _SoftCrossEntropy.apply(scores, targets) + torch.xlogy(targets, targets).sum(1).mean()


class _SoftCrossEntropy(torch.autograd.Function):
    """-mean over rows of <targets, log_softmax(scores)>.

    Of all that autograd would keep, one matrix is enough: the gradient itself. With 4096 words for each of 4096
    locations these matrices, and not the products, are what the loss costs.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, targets: Tensor) -> Tensor:
        probabilities = torch.softmax(scores, 1)
        value = -_expected_log(targets, probabilities, scores).mean()
        ctx.save_for_backward(probabilities.sub_(targets))
        return value

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
