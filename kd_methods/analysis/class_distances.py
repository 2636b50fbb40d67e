"""How far apart a teacher holds two classes: 1 - linear CKA of their features on the training set (WKD-L)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..contract import Outputs, TeacherPass
from .locations import rows

IN_MEMORY = 2**30
"""Bytes of features that are held at a time; with more the teacher sees the images several times."""


def class_distances(teacher_pass: TeacherPass, classes: int, unit: str | None = None) -> Tensor:
    """(K, K) distances 1 - ||X_a' X_b||_F² / (||X_a' X_a||_F ||X_b' X_b||_F), X the centred features of a class.

    The rows of X are the images of a class in the order of the training set, or all their positions; those of two
    classes belong together in pairs, so the distances depend on that order. Classes with more images than the smallest
    one are cut to its size. A class without images is at distance 1 of all others.

    Args:
        teacher_pass: the teacher on the training set.
        classes: K.
        unit: the unit whose positions are the rows; None for the logits, one row per image.

    Source: Lv et al. 2024 in the form of JiamingLv/WKD ``tools/generate_cost_matrix.py`` @214cf88.
    """

    def compute() -> dict[str, Tensor]:
        return {"distances": _computed(teacher_pass, classes, unit)}

    return teacher_pass.stored("class_distances", {"unit": unit, "classes": classes}, compute)["distances"]


def _computed(teacher_pass: TeacherPass, classes: int, unit: str | None) -> Tensor:
    labels = teacher_pass.labels
    members = [(labels == k).nonzero().squeeze(1) for k in range(classes)]
    present = [k for k in range(classes) if len(members[k])]
    each = min(len(members[k]) for k in present)
    read = _reader(unit)

    def features(group: list[int]) -> Tensor:
        """(G, N, D), centred per class."""
        wanted = torch.cat([members[k][:each] for k in group])
        features = torch.cat(
            [read(outputs).cpu() for outputs, _ in teacher_pass.outputs((unit,) if unit else (), wanted)]
        ).unflatten(0, (len(group), -1))
        return features - features.mean(1, keepdim=True)

    one = features(present[:1])
    size = max(1, int(IN_MEMORY / (2 * one.numel() * one.element_size())))
    groups = [present[i : i + size] for i in range(0, len(present), size)]
    products = torch.zeros(classes, classes, dtype=torch.float64)
    for i, group in enumerate(groups):
        centred = features(group)
        for j in range(i, len(groups)):
            teacher_pass.progress(f"distances between classes, group {i + 1} and {j + 1} of {len(groups)}")
            other = centred if j == i else features(groups[j])
            for a, x in zip(group, centred, strict=True):
                for b, y in _pairs(groups[j], other, a if j == i else -1):
                    products[a, b] = products[b, a] = (x.t() @ y).double().square().sum()
    norms = products.diagonal().sqrt()
    similarity = products / (norms[:, None] * norms).clamp_min(1e-12)
    return (1 - similarity).float().fill_diagonal_(0.0)


def _pairs(group: list[int], features: Tensor, least: int) -> Iterator[tuple[int, Tensor]]:
    return ((b, y) for b, y in zip(group, features, strict=True) if b >= least)


def _reader(unit: str | None) -> Callable[[Outputs], Tensor]:
    return (lambda outputs: outputs.logits.float()) if unit is None else (lambda outputs: rows(outputs[unit]))
