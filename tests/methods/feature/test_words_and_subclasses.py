"""What letKD and others prepare once from a teacher: its locations, visual words, sub-classes and decisions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.teacher_passes import UNIT, some_digits, teacher_pass_of
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

import kd_methods
from benchmarks.tasks.images import ImageData
from benchmarks.training.teacher_pass import StoredTeacherPass
from kd_methods import functional
from kd_methods.analysis import locations, subclasses, vocabulary
from kd_methods.errors import UserError


@pytest.fixture(scope="module")
def data() -> ImageData:
    return some_digits()


@pytest.fixture(scope="module")
def teacher_pass(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> StoredTeacherPass:
    return teacher_pass_of(data, tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def features(teacher_pass: StoredTeacherPass) -> tuple[Tensor, Tensor]:
    streamed = list(locations.stream(teacher_pass, UNIT))
    return torch.cat([features for features, _ in streamed]), torch.cat([labels for _, labels in streamed])


def test_every_location_is_a_sample_of_its_image(
    teacher_pass: StoredTeacherPass, features: tuple[Tensor, Tensor], data: ImageData
):
    rows, labels = features
    assert rows.shape == (600 * 16, 64) and torch.equal(labels, data.info.labels.repeat_interleave(16))
    outputs, _ = next(iter(teacher_pass.outputs((UNIT,), torch.tensor([5, 3]))))
    first = outputs[UNIT][1].permute(1, 2, 0).reshape(-1, 64)
    assert torch.allclose(first, rows[3 * 16 : 4 * 16], atol=1e-5)
    pooled = torch.cat([features for features, _ in locations.stream(teacher_pass, UNIT, 2)])
    assert torch.allclose(pooled[:4].mean(0), rows[:16].mean(0), atol=1e-5)


def test_words_are_centres_without_empty_ones(teacher_pass: StoredTeacherPass, features: tuple[Tensor, Tensor]):
    words = vocabulary.vocabulary(teacher_pass, UNIT, 1, 40, 5)
    distances = torch.cdist(features[0], words)
    sizes = distances.argmin(1).bincount(minlength=40)
    assert words.shape == (40, 64) and sizes.min() > 0 and sizes.sum() == len(features[0])
    spread = (features[0] - features[0].mean(0)).pow(2).sum(1).mean()
    assert distances.min(1).values.pow(2).mean() < 0.5 * spread


def test_words_are_found_by_lloyds_iterations(teacher_pass: StoredTeacherPass, features: tuple[Tensor, Tensor]):
    rows = features[0]
    start = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:40].sort().values]
    ours = vocabulary.vocabulary(teacher_pass, UNIT, 1, 40, 20)
    with warnings.catch_warnings(action="ignore"):  # it has not converged
        theirs = KMeans(40, init=start.numpy(), n_init=1, max_iter=20, tol=0, algorithm="lloyd").fit(rows.numpy())
    assert torch.allclose(ours, torch.from_numpy(theirs.cluster_centers_), atol=1e-3)
    # What a single pass of mini-batches over so few locations leaves is not near enough.
    batches = MiniBatchKMeans(40, init="random", n_init=1, batch_size=16_384, random_state=0).partial_fit(rows.numpy())
    far, near = (
        torch.cdist(rows, centres).min(1).values.pow(2).mean()
        for centres in (torch.from_numpy(batches.cluster_centers_), ours)
    )
    assert far > 1.1 * near


def test_words_do_not_depend_on_what_memory_holds(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = vocabulary.vocabulary(teacher_pass_of(data, tmp_path / "held"), UNIT, 1, 30, 4)
    monkeypatch.setattr(vocabulary, "MEMORY", 10)
    assert torch.equal(vocabulary.vocabulary(teacher_pass_of(data, tmp_path / "not"), UNIT, 1, 30, 4), held)


def test_a_word_without_locations_shares_those_of_the_largest():
    rows = torch.cat([torch.randn(50, 3) + 5, torch.randn(10, 3) - 5])
    centres = vocabulary.lloyd([rows[:25], rows[25:]], torch.tensor([[5.0] * 3, [5.0] * 3, [-5.0] * 3]))
    assert torch.allclose(centres[2], rows[50:].mean(0), atol=1e-5)
    assert torch.allclose(centres[:2].mean(0), rows[:50].mean(0), atol=1e-5) and not torch.equal(centres[0], centres[1])
    assert torch.cdist(rows, vocabulary.lloyd([rows], centres)).argmin(1).bincount(minlength=3).min() > 0


def test_discriminants_are_those_of_scikit_learn(teacher_pass: StoredTeacherPass, features: tuple[Tensor, Tensor]):
    rows, labels = features[0].double().numpy(), features[1].numpy()
    projection, mean = subclasses.discriminants(teacher_pass, UNIT, 1, 10, 9)
    reference = LinearDiscriminantAnalysis(solver="svd", n_components=9).fit(rows, labels)
    assert np.allclose(mean, reference.xbar_, rtol=1e-6)
    ours, theirs = (rows - mean.numpy()) @ projection.numpy(), reference.transform(rows)
    # Its versions divide by the samples, or by the samples less the classes.
    factors = (theirs.std(0) / ours.std(0)).tolist()
    assert factors == pytest.approx(factors[:1] * 9, rel=1e-5)
    for i in range(9):
        agreement = np.corrcoef(ours[:, i], theirs[:, i])[0, 1]
        assert abs(agreement) > 1 - 1e-6
    within = sum(
        (ours[labels == c] - ours[labels == c].mean(0)).T @ (ours[labels == c] - ours[labels == c].mean(0))
        for c in range(10)
    ) / (len(rows) - 10)
    assert np.allclose(within, np.eye(9), atol=1e-5)


def test_decisions_are_shares_of_locations(teacher_pass: StoredTeacherPass, features: tuple[Tensor, Tensor]):
    of_classes = subclasses.find(teacher_pass, UNIT, 1, 10, 4, 9)
    assert of_classes.centres.shape == (10, 4, 9) and of_classes.decisions.shape == (40, 40)
    assert torch.allclose(of_classes.decisions.sum(1), torch.ones(40), atol=1e-6)
    points = subclasses.project(features[0], of_classes.projection, of_classes.mean)
    places = subclasses.nearest_of_class(points, features[1], of_classes.centres)
    assert torch.equal(places // 4, features[1])
    chosen = points[places == 7]
    taken = torch.cdist(chosen, of_classes.centres.flatten(0, 1)).argmin(1).bincount(minlength=40) / len(chosen)
    assert torch.allclose(of_classes.decisions[7], taken.float(), atol=1e-6)


def test_one_subclass_gives_the_confusion_of_nearest_class_means(
    teacher_pass: StoredTeacherPass, features: tuple[Tensor, Tensor]
):
    of_classes = subclasses.find(teacher_pass, UNIT, 1, 10, 1, 9)
    points = subclasses.project(features[0], of_classes.projection, of_classes.mean)
    means = torch.stack([points[features[1] == c].mean(0) for c in range(10)])
    assert torch.allclose(of_classes.centres[:, 0].double(), means.double(), atol=1e-4)
    taken = torch.cdist(points, means).argmin(1)
    confusion = torch.stack([taken[features[1] == c].bincount(minlength=10) for c in range(10)]).float()
    assert torch.allclose(of_classes.decisions, confusion / confusion.sum(1, keepdim=True), atol=1e-3)


def test_classes_without_images_and_missing_discriminants_change_nothing(teacher_pass: StoredTeacherPass):
    """As on a sample of a data set's classes: columns of zeros, and centres that nothing is near to."""
    usual, more = subclasses.find(teacher_pass, UNIT, 1, 10, 4, 9), subclasses.find(teacher_pass, UNIT, 1, 13, 4, 60)
    assert more.projection.shape[1] == 60 and not more.projection[:, 9:].any()
    assert torch.equal(more.projection[:, :9], usual.projection)
    # Sums over 60 columns are rounded otherwise than over 9, which moves a few locations between centres.
    torch.testing.assert_close(more.centres[:10, :, :9], usual.centres, atol=0.05, rtol=0)
    torch.testing.assert_close(more.decisions[:40, :40], usual.decisions, atol=0.05, rtol=0)
    assert not more.decisions[:40, 40:].any() and torch.equal(more.decisions[40:, 40:], torch.eye(12))


def test_too_many_subclasses_are_one_line(teacher_pass: StoredTeacherPass):
    with pytest.raises(UserError, match="too few for 5000 sub-classes"):
        subclasses.find(teacher_pass, UNIT, 1, 10, 5000, 9)


@pytest.fixture
def prepared(data: ImageData, teacher_pass: StoredTeacherPass) -> Any:
    method = kd_methods.build("letkd2", data.build("resnet8"), teacher_pass.network, data.info)
    method.prepare(teacher_pass)
    return method


def test_prepared_targets_are_distributions_and_small_data_is_said(prepared: Any, features: tuple[Tensor, Tensor]):
    assert len(prepared.words) == 600 * 16 // 39
    words, sharpness, discriminants = prepared.remarks()
    assert words == "246 visual words instead of 4096, 39 locations each"
    assert 0 < float(sharpness.rpartition(" ")[2]) <= 1 and "largest target probability" in sharpness
    assert discriminants == "9 discriminants instead of 60"
    rows, labels = features[0][:160], features[1][:160:16]
    targets = prepared._decisions(rows, labels)
    assert targets.shape == (160, 80) and torch.allclose(targets.sum(1), torch.ones(160), atol=1e-5)
    scores = torch.zeros(160, 246)
    # Where a student says nothing yet, a term is the logarithm of the number of templates less the targets' entropy.
    words = (-torch.cdist(rows.double(), prepared.words.double()).pow(2)).softmax(1)
    for term, p in (
        (functional.word_matching(scores, rows, prepared.words), words),
        (functional.decision_matching(torch.zeros(160, 80), targets), targets.double()),
    ):
        entropy = -torch.special.xlogy(p, p).sum(1).mean()
        assert float(term) == pytest.approx(np.log(p.shape[1]) - float(entropy), abs=1e-4)
