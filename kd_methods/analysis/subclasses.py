"""Sub-classes of a teacher's local features: a discriminant projection, centres within each class, their confusion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from ..contract import TeacherPass
from ..errors import UserError
from .locations import stream

ITERATIONS = 20
FAR = 1e6
"""Coordinates of the centres of a class without images, so that none is ever the nearest."""


@dataclass(frozen=True)
class Subclasses:
    """projection (D, d) and mean (D,) in fp64, centres (C, per, d), decisions (C per, C per); see the functions."""

    projection: Tensor
    mean: Tensor
    centres: Tensor
    decisions: Tensor


def find(teacher_pass: TeacherPass, unit: str, factor: int, classes: int, per: int, dimensions: int) -> Subclasses:
    """Sub-classes of a unit's local features, each part computed once.

    Args:
        teacher_pass: the teacher on its training images.
        unit: whose output.
        factor: by which maps are average-pooled first.
        classes: number of classes.
        per: sub-classes per class.
        dimensions: how many discriminants are kept; where there are fewer (classes without images, channels that are
            constant), the projection's last columns are zero.

    Raises:
        UserError: a class has some locations, but fewer than sub-classes.
    """
    where = {"unit": unit, "pooling": factor, "dimensions": dimensions}

    def spread() -> dict[str, Tensor]:
        projection, mean = discriminants(teacher_pass, unit, factor, classes, dimensions)
        return {"projection": projection, "mean": mean}

    stored = teacher_pass.stored("discriminants 1", where, spread)
    projection, mean = stored["projection"], stored["mean"]
    projection = F.pad(projection, (0, dimensions - projection.shape[1]))
    where["subclasses"] = per
    basis = projection, mean
    inner = teacher_pass.stored(
        "sub-classes 1", where, lambda: {"centres": centres(teacher_pass, unit, factor, basis, classes, per)}
    )["centres"]
    decisions = teacher_pass.stored(
        "sub-class decisions 1", where, lambda: {"decisions": scores(teacher_pass, unit, factor, basis, inner)}
    )["decisions"]
    return Subclasses(projection, mean, inner, decisions)


def discriminants(
    teacher_pass: TeacherPass, unit: str, factor: int, classes: int, dimensions: int
) -> tuple[Tensor, Tensor]:
    """Linear discriminant analysis of the features of ``unit``, each labelled with its image's class.

    The scatter matrices are summed in one pass, so memory does not grow with the data. Agrees with scikit-learn's
    LinearDiscriminantAnalysis (SVD solver, priors from the data) up to the sign of each discriminant and one common
    factor, which no distance comparison depends on.

    Args:
        teacher_pass: the teacher on its training images.
        unit: whose output.
        factor: by which maps are average-pooled first.
        classes: number of classes.
        dimensions: how many discriminants are kept.

    Returns:
        The projection (D, dimensions) and the mean (D,) in fp64; W^T S_w W = 1 with S_w the pooled within-class
        covariance.
    """
    counts = sums = second = shift = None
    for features, labels in stream(teacher_pass, unit, factor):
        features = features.double()
        if counts is None or sums is None or second is None or shift is None:
            # Moments about a point within the data: differences of large sums would lose digits.
            shift = features.mean(0)
            counts = features.new_zeros(classes)
            sums = features.new_zeros(classes, features.shape[1])
            second = features.new_zeros(features.shape[1], features.shape[1])
        features = features - shift
        counts.index_add_(0, labels, torch.ones_like(labels, dtype=counts.dtype))
        sums.index_add_(0, labels, features)
        second += features.t() @ features
    assert counts is not None and sums is not None and second is not None and shift is not None
    total, mean = counts.sum(), sums.sum(0) / counts.sum()
    present = counts > 0
    means = sums[present] / counts[present, None]
    within = (second - (means * counts[present, None]).t() @ means) / (total - present.sum())
    between = ((means - mean) * counts[present, None]).t() @ (means - mean) / total
    values, vectors = torch.linalg.eigh(within)
    spread = values > values.max() * 1e-10  # channels that are constant, or sums of others, have no spread to divide by
    whiten = vectors[:, spread] / values[spread].sqrt()
    _, directions = torch.linalg.eigh(whiten.t() @ between @ whiten)
    rank = min(dimensions, int(present.sum()) - 1)
    return (whiten @ directions.flip(1))[:, :rank], mean + shift


def centres(
    teacher_pass: TeacherPass, unit: str, factor: int, basis: tuple[Tensor, Tensor], classes: int, per: int
) -> Tensor:
    """Centres (classes, per, dimensions) of each class's projected features by k-means, one class after another.

    ``basis`` is what :func:`discriminants` returns. Those of a class without images are :data:`FAR`.
    """
    means_of_classes = []
    for label in range(classes):
        teacher_pass.progress(f"class {label + 1} of {classes}")
        images = torch.nonzero(teacher_pass.labels == label).flatten()
        if not len(images):
            means_of_classes.append(torch.full((per, basis[0].shape[1]), FAR))
            continue
        projected = [project(features, *basis).cpu() for features, _ in stream(teacher_pass, unit, factor, images)]
        if sum(map(len, projected)) < per:
            raise UserError(f"class {label} has {sum(map(len, projected))} locations, too few for {per} sub-classes")
        # Several threads would add up in the order in which they finish: other bits every time.
        with threadpool_limits(1):
            means = KMeans(per, n_init=1, max_iter=ITERATIONS, random_state=0).fit(torch.cat(projected).numpy())
        means_of_classes.append(torch.from_numpy(means.cluster_centers_).float())
    return torch.stack(means_of_classes)


def scores(teacher_pass: TeacherPass, unit: str, factor: int, basis: tuple[Tensor, Tensor], centres: Tensor) -> Tensor:
    """Which sub-classes the teacher's local features are taken for when labels are not known.

    Element (k, j) of the result (8C, 8C for 8 per class) is the share of sub-class k's locations that have j's centre
    as their nearest among all; index = sub-classes per class x class + sub-class. A sub-class without locations keeps
    to itself.
    """
    classes, per = centres.shape[:2]
    tally = torch.zeros(classes * per, classes * per, dtype=torch.float64)
    for features, labels in stream(teacher_pass, unit, factor):
        points = project(features, *basis)
        nearest = nearest_of_class(points, labels, centres.to(points))
        taken = torch.cdist(points, centres.flatten(0, 1).to(points)).argmin(1)
        ones = torch.ones(len(nearest), dtype=torch.float64)
        tally.index_put_((nearest.cpu(), taken.cpu()), ones, accumulate=True)
    alone = tally.sum(1) == 0
    tally[alone, alone] = 1
    return (tally / tally.sum(1, keepdim=True)).float()


def project(features: Tensor, projection: Tensor, mean: Tensor) -> Tensor:
    """(N, D) to (N, dimensions)."""
    return (features - mean.to(features)) @ projection.to(features)


def nearest_of_class(points: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Index (N,), over all sub-classes, of the one nearest to each point (N, dimensions) among its label's (N,) own."""
    # No cdist: it is a matrix product, which TF32 makes too coarse to order neighbours.
    nearest = (points[:, None] - centres[labels]).square().sum(2).argmin(1)
    return labels * centres.shape[1] + nearest
