"""Visual words: the centres of a teacher's features over all locations of all training images."""

from __future__ import annotations

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from ..contract import TeacherPass
from .locations import stream

BATCH = 16_384
"""Locations per update; at least four per centre."""


def vocabulary(teacher_pass: TeacherPass, unit: str, factor: int, words: int, passes: int) -> Tensor:
    """Centres (words, D) of the features of ``unit``, Euclidean and not normalised; computed once.

    Mini-batch k-means over a stream, so that memory does not grow with the data. On 640,000 features of a trained
    resnet56 its centres are about as near to unseen features as those of 20 Lloyd iterations over all of them.

    Args:
        teacher_pass: the teacher on its training images.
        unit: whose output.
        factor: by which maps are average-pooled first.
        words: number of centres.
        passes: how often all images are seen, in one fixed random order.

    Source: letKD supplement and code (faiss k-means, 20 iterations, random start); Sculley 2010 for the updates.
    """
    settings = {"unit": unit, "pooling": factor, "words": words, "passes": passes}
    return teacher_pass.stored(
        "visual words 1", settings, lambda: {"words": _words(teacher_pass, unit, factor, words, passes)}
    )["words"]


def _words(teacher_pass: TeacherPass, unit: str, factor: int, words: int, passes: int) -> Tensor:
    order = torch.randperm(len(teacher_pass.labels), generator=torch.Generator().manual_seed(0))
    size = max(BATCH, 4 * words)
    means = MiniBatchKMeans(words, init="random", n_init=1, batch_size=size, random_state=0)
    for _ in range(passes):
        waiting: list[Tensor] = []
        for features, _ in stream(teacher_pass, unit, factor, order):
            waiting.append(features.cpu())
            if sum(map(len, waiting)) >= size:
                means.partial_fit(torch.cat(waiting).numpy())
                waiting = []
        # What is left is too few to start from, and enough to go on with.
        if waiting and (sum(map(len, waiting)) >= words or hasattr(means, "cluster_centers_")):
            means.partial_fit(torch.cat(waiting).numpy())
    return torch.from_numpy(means.cluster_centers_).float()
