"""Losses on the scores (…, K) of local features against templates."""

from __future__ import annotations

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
    features = features.detach()
    # ||z||² is the same for all words and drops out of the softmax.
    closeness = inverse_temperature * (2 * features @ words.t() - words.pow(2).sum(1))
    return _divergence(scores, closeness)


@full_precision
def decision_matching(scores: Tensor, targets: Tensor) -> Tensor:
    """KL divergence between given decisions and the softmax of the student's scores, mean over locations.

    Args:
        scores: (N, K) of the student's locations.
        targets: (N, K), rows that sum to 1; zeros count nothing.

    Source: letKD (arXiv 2309.02843), supplement algorithm 2.
    """
    targets = targets.detach()
    return (torch.xlogy(targets, targets).sum(1) - (targets * scores).sum(1) + scores.logsumexp(1)).mean()


def _divergence(scores: Tensor, target_logits: Tensor) -> Tensor:
    # KL(p || q) = sum p log p - sum p a + lse(a): no matrix of log-probabilities is kept for the backward pass.
    partition = target_logits.logsumexp(1, keepdim=True)
    targets = (target_logits - partition).exp_()
    entropy = (targets * target_logits).sum(1) - partition.squeeze(1)
    return (entropy - (targets * scores).sum(1) + scores.logsumexp(1)).mean()
