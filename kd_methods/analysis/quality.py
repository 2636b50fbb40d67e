"""Knowledge quality of a teacher's layers, arXiv 2511.14981 in the closed form of its public code.

S = mean |cos| of two samples of one class - mean |cos| of two of different classes
I = (1 - mean over classes of the least |cos| within) * mean entropy of the class-wise spectra / ln(norm)
E = 2 * mean over classes of the distance to the nearest other class / mean norm * (N / pi)^(1 / min(n, d))
Q = S + sqrt(I * E)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..contract import TeacherPass

EntropyNorm = Literal["ln5", "lnN"]
Metric = Literal["Q", "S", "I", "E", "sqrtIE"]
COVERED = 0.95
"""Of a class's variance, the share that tells its dimensions."""

MEMORY = 2**28
"""Values of features held at once; layers that do not fit together have passes of their own."""


@dataclass(frozen=True)
class Quality:
    """What the metric is made of, one value per layer (L,), in fp64.

    units         names of the layers, in order
    separation    S of pairs of different samples
    self_pairs    what it is larger by where every sample is paired with itself, too
    least         mean over classes of the least absolute cosine within a class
    entropy       mean over classes of the entropy of the class-wise spectrum
    expansion     E
    per_class     samples per class of the spectra
    """

    units: tuple[str, ...]
    separation: Tensor
    self_pairs: Tensor
    least: Tensor
    entropy: Tensor
    expansion: Tensor
    per_class: int

    def information(self, norm: EntropyNorm = "ln5") -> Tensor:
        """I; the public code divides by ln 5 whatever the data, ln of the samples per class bounds it by about 1."""
        return (1 - self.least) * self.entropy / math.log(5 if norm == "ln5" else max(2, self.per_class))

    def values(self, metric: Metric = "Q", norm: EntropyNorm = "ln5", self_pairs: bool = True) -> Tensor:
        """A metric of every layer; ``sqrtIE`` is the quality without S.

        The public code has every sample's pair with itself in S (``self_pairs``), by the way that it indexes.
        """
        information = self.information(norm)
        separation = self.separation + self.self_pairs * self_pairs
        root = (information * self.expansion).clamp_min(0).sqrt()
        return {
            "Q": separation + root,
            "S": separation,
            "I": information,
            "E": self.expansion,
            "sqrtIE": root,
        }[metric]

    def best(
        self, count: int, metric: Metric = "Q", norm: EntropyNorm = "ln5", self_pairs: bool = True
    ) -> tuple[str, ...]:
        """The ``count`` layers with the highest values, in order of depth; of equal ones the deeper."""
        values = self.values(metric, norm, self_pairs)
        ranked = sorted(range(len(values)), key=lambda i: (float(values[i]), i), reverse=True)
        return tuple(self.units[i] for i in sorted(ranked[:count]))


def quality(
    teacher_pass: TeacherPass, units: Sequence[str], classes: int, samples: int = 5000, per_class: int = 500
) -> Quality:
    """Quality of the teacher's ``units`` on its training images, without augmentation; computed once.

    Args:
        teacher_pass: the teacher on its training images.
        units: layers, in order of depth.
        classes: number of classes.
        samples: size of the class-balanced random subset for S, E and the least cosines.
        per_class: largest number of samples of a class for its spectrum.
    """
    settings = {"units": list(units), "samples": samples, "per_class": per_class}
    names = ("separation", "self_pairs", "least", "expansion", "entropy", "per_class")

    def compute() -> dict[str, Tensor]:
        return dict(zip(names, _measure(teacher_pass, units, classes, samples, per_class), strict=True))

    measured = teacher_pass.stored("layer quality 3", settings, compute)
    values = {name: measured[name].cpu() for name in names}
    return Quality(tuple(units), per_class=int(values.pop("per_class")), **values)


def _measure(
    teacher_pass: TeacherPass, units: Sequence[str], classes: int, samples: int, per_class: int
) -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    members = [torch.nonzero(teacher_pass.labels == label).flatten() for label in range(classes)]
    members = [images[torch.randperm(len(images), generator=draws)] for images in members if len(images)]
    few = [images[: max(2, samples // classes)] for images in members]
    many = [images[:per_class] for images in members]

    results: dict[str, tuple[float, ...]] = {}
    for unit, features in _features(teacher_pass, units, torch.cat(few)):
        results[unit] = distances(features, [len(images) for images in few], len(teacher_pass.labels))
    spectra: dict[str, list[Tensor]] = {unit: [] for unit in units}
    for label, images in enumerate(many, 1):
        teacher_pass.progress(f"spectra, class {label} of {len(many)}")
        for unit, features in _features(teacher_pass, units, images):
            spectra[unit].append(spectrum(features).cpu())
    entropy = torch.tensor([spectral_entropy(spectra[unit]) for unit in units], dtype=torch.float64)
    size = torch.tensor(sum(map(len, many)) / len(many)).round()
    return [*torch.tensor([results[unit] for unit in units], dtype=torch.float64).unbind(1), entropy, size]


def _features(teacher_pass: TeacherPass, units: Sequence[str], indices: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Every unit with its features (n, d) of those images, in as many passes as memory asks for."""
    outputs, _ = next(iter(teacher_pass.outputs(units, indices[:1])))
    sizes = {unit: outputs[unit].numel() * len(indices) for unit in units}
    waiting = list(units)
    while waiting:
        now: list[str] = []
        held = 0
        while waiting and (not now or held + sizes[waiting[0]] <= MEMORY):
            held += sizes[waiting[0]]
            now.append(waiting.pop(0))
        batches: dict[str, list[Tensor]] = {unit: [] for unit in now}
        for outputs, _ in teacher_pass.outputs(now, indices):
            for unit in now:
                batches[unit].append(outputs[unit].flatten(1).float())
        for unit in now:
            yield unit, torch.cat(batches.pop(unit))


def distances(features: Tensor, counts: Sequence[int], population: int) -> tuple[float, float, float, float]:
    """S, what pairs of a sample with itself would add to it, the mean least cosine, E; of features sorted by class.

    Args:
        features: (n, d).
        counts: samples of each class, in order.
        population: size N of the whole training set.
    """
    products = features @ features.t()
    norms = products.diagonal().clamp_min(1e-24).sqrt()
    cosines = (products / norms / norms[:, None]).abs()
    member = torch.zeros(len(features), len(counts), device=features.device)
    spans = list(zip(torch.tensor([0, *counts[:-1]]).cumsum(0).tolist(), counts, strict=True))
    for label, (start, count) in enumerate(spans):
        member[start : start + count, label] = 1 / count
    means = member.t() @ cosines @ member
    size = torch.tensor(counts).to(means)
    selves = member.t().square() @ cosines.diagonal()  # their part of the mean over n x n pairs
    within = torch.where(size > 1, (means.diagonal() - selves) * size / (size - 1), means.diagonal()).mean()
    added = means.diagonal().mean() - within
    between = (means.sum() - means.diagonal().sum()) / (len(counts) * (len(counts) - 1))
    least = torch.stack([cosines[a : a + n, a : a + n].min() for a, n in spans]).mean()

    squares = norms.pow(2)
    apart = squares + squares[:, None] - 2 * products
    for start, count in spans:
        apart[start : start + count, start : start + count] = torch.inf
    nearest = torch.stack([apart[a : a + n].min().clamp_min(0).sqrt() for a, n in spans]).mean()
    length = torch.stack([norms[a : a + n].mean() for a, n in spans]).mean()
    expansion = 2 * nearest / length * (population / math.pi) ** (1 / min(features.shape))
    return float(within - between), float(added), float(least), float(expansion)


def spectrum(features: Tensor) -> Tensor:
    """Shares of variance, squared singular values, of features (n, d) of one class about their mean, falling."""
    features = features - features.mean(0)
    small = features @ features.t() if len(features) <= features.shape[1] else features.t() @ features
    shares = torch.linalg.eigvalsh(small.double()).clamp_min(0).flip(0)
    return shares / shares.sum().clamp_min(1e-300)


def spectral_entropy(spectra: Sequence[Tensor]) -> float:
    """Mean over classes of the entropy of their spectra, each cut as the public code cuts it.

    There as many shares are left of every class as all classes together need for 95 % of their variances, so the cut is
    felt where classes are few and simple. A class whose features are all alike has no entropy.
    """
    values = sum(int((shares.cumsum(0) < COVERED).sum()) + 1 for shares in spectra)
    cut = [shares[:values] / shares[:values].sum().clamp_min(1e-300) for shares in spectra]
    return sum(float(-torch.xlogy(shares, shares).sum()) for shares in cut) / len(cut)
