"""letKD: its layer, where it sits, what it adds, and what it is taught; and what is prepared once from a teacher."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

import kd_methods
from benchmarks.cli.main import cli
from benchmarks.common.weights import to_bytes
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.config.table_spec import load_table
from benchmarks.driver.planning import probe
from benchmarks.driver.planning.plan import Request, make
from benchmarks.networks import NetworkView, build_network, count, macs
from benchmarks.store.runs import Store
from benchmarks.tasks import get_task
from benchmarks.tasks.data_sets import digits
from benchmarks.tasks.images import ImageData, Split
from benchmarks.training.failures import Interrupted
from benchmarks.training.group import Group
from benchmarks.training.shared_teacher import SharedTeacher
from benchmarks.training.student_run import StudentRun
from benchmarks.training.teacher_pass import StoredTeacherPass
from kd_methods import functional
from kd_methods.analysis import locations, subclasses, vocabulary
from kd_methods.contract import DataInfo
from kd_methods.errors import UserError
from kd_methods.feature._kd_layer import Assign, Match

CIFAR = DataInfo(50_000, 100, torch.arange(50_000) % 100)
UNIT = "layer3.0"
SIZES = {
    ("wrn_40_2", "wrn_16_2"): (0.703, 1.760, 1.966, 101.1, 168.2, 181.3, 327.6),
    ("wrn_40_2", "wrn_40_1"): (0.570, 1.102, 1.206, 83.3, 116.9, 123.5, 327.6),
    ("resnet56", "resnet20"): (0.278, 0.810, 0.914, 40.8, 74.4, 81.0, 125.7),
    ("resnet110", "resnet20"): (0.278, 0.810, 0.914, 40.8, 74.4, 81.0, 253.1),
    ("resnet110", "resnet32"): (0.473, 1.005, 1.109, 69.1, 102.7, 109.3, 253.1),
    ("resnet32x4", "resnet8x4"): (1.234, 3.339, 3.750, 177.1, 311.3, 337.5, 1083.0),
    ("wrn_40_2", "ShuffleV1"): (0.949, 8.822, 10.360, 38.7, 164.5, 189.1, 327.6),
    ("resnet32x4", "ShuffleV1"): (0.949, 8.822, 10.360, 38.7, 164.5, 189.1, 1083.0),
    ("resnet32x4", "ShuffleV2"): (1.356, 9.753, 10.497, 44.5, 178.7, 190.6, 1083.0),
    ("ResNet50", "MobileNetV2"): (0.813, 11.307, 11.437, 6.5, 48.4, 48.9, 1297.8),
}
"""Millions of parameters, then of MACs: plain student, letKD-1, letKD-2 (derived from the authors' definitions).

The last number is the teacher's MACs, without its classifier.
"""


def adapted(name: str, pair: tuple[str, str] = ("resnet56", "resnet20"), **values: Any) -> tuple[Any, NetworkView]:
    teacher, student = (build_network(network, 100) for network in pair)
    method = kd_methods.build(name, student, teacher, CIFAR, **values)
    return method, method.adapt(student)  # type: ignore[return-value]


@pytest.mark.parametrize(("pair", "sizes"), SIZES.items(), ids=lambda x: "-".join(map(str, x)))
def test_size_of_what_is_added(pair: tuple[str, str], sizes: tuple[float, ...]):
    teacher, plain = (build_network(name, 100) for name in pair)
    students = [plain.plain(), *(m.deployed(s) for m, s in (adapted(name, pair) for name in ("letkd1", "letkd2")))]
    sizes_now = [count(student.parameters()) / 1e6 for student in students]
    assert [round(value, 3) for value in sizes_now] == pytest.approx(sizes[:3], abs=1.1e-3)
    image = torch.zeros(1, 3, 32, 32)
    classifier = 100 * teacher.shape(teacher.layout.pooled)[0]
    multiplied = [*(macs(student, image) for student in students), macs(teacher.plain(), image) - classifier]
    assert [value / 1e6 for value in multiplied] == pytest.approx(sizes[3:], abs=0.15), "sums of rounded parts"


def test_size_on_the_first_pair_exactly():
    plain = count(build_network("resnet20", 100).parameters())
    assert count(adapted("letkd1")[1].parameters()) == plain + 532_482
    larger = count(adapted("letkd2")[1].parameters())
    assert larger == plain + 532_482 + 104_002
    rows = {row.id: row.student for row in load_table("letkd-ablation").methods}
    assert count(build_network(rows["equal-size"], 100).parameters()) == pytest.approx(larger, rel=3e-3)


@pytest.mark.parametrize(
    ("pair", "inner", "outer", "factor"),
    [
        (("resnet56", "resnet20"), (64, 8, 8), (64, 8, 8), 1),
        (("wrn_40_2", "wrn_40_1"), (64, 8, 8), (64, 8, 8), 1),
        (("resnet32x4", "resnet8x4"), (256, 8, 8), (256, 8, 8), 1),
        (("wrn_40_2", "ShuffleV1"), (960, 4, 4), (960, 4, 4), 2),
        (("resnet32x4", "ShuffleV2"), (464, 4, 4), (1024, 4, 4), 2),
        (("ResNet50", "MobileNetV2"), (80, 2, 2), (1280, 2, 2), 2),
    ],
)
def test_where_the_layers_sit(pair: tuple[str, str], inner: tuple, outer: tuple, factor: int):
    method, student = adapted("letkd2", pair)
    assert (student.shape("letkd_intermediate"), student.shape("letkd_penultimate")) == (inner, outer)
    assert [site.factor for site in method.sites] == [factor, factor]
    assert student.layout.last_map == "letkd_penultimate"
    units = student.units
    assert units[units.index("letkd_penultimate") + 1].startswith(("pool", "flatten"))
    if pair[1] == "resnet8x4":  # the last stage is one block: the layers are neighbours, the intermediate one first
        assert units.index("letkd_penultimate") == units.index("letkd_intermediate") + 2


def test_without_mixing_and_supervision_the_student_is_the_plain_one():
    torch.manual_seed(0)
    teacher, student = build_network("resnet8", 10), build_network("resnet8", 10)
    method = kd_methods.build("letkd2", student, teacher, DataInfo(100, 10), alpha_penultimate=0.0,
                              alpha_intermediate=0.0, weight_penultimate=0.0, weight_intermediate=0.0)  # fmt: skip
    x = torch.randn(4, 3, 32, 32)
    assert method.adapt(student) is student and not list(method.parameters())
    assert not method.needs.teacher_units and method.deployed(student)(x).shape == (4, 10)


def test_scores_before_the_pooling_come_after_the_intermediate_layer_where_the_last_stage_is_one_block():
    for pair, unit in ((("resnet32x4", "resnet8x4"), "letkd_intermediate"), (("resnet56", "resnet20"), "layer3.2")):
        method, student = adapted("letkd2", pair, alpha_penultimate=0.0)
        assert method.needs.student_units == ("letkd_intermediate_match", unit)
        assert student.layout.last_map == unit


def test_a_method_without_any_layer_is_one_line():
    with pytest.raises(UserError, match="penultimate or intermediate has to be true"):
        adapted("letkd1", penultimate=False)


def test_quest_deploys_the_plain_student():
    method, student = adapted("quest")
    assert method.deployed(student) is student.module


def test_layer():
    torch.manual_seed(0)
    match, assign = Match(6, 40), Assign(6, 40, alpha=0.5)
    x = torch.randn(3, 6, 5, 5)
    same, scores = match(x)
    assert same is x and scores.shape == (3, 5, 5, 40)
    assert scores.abs().max() <= match.scale.abs() + 1e-5
    locations_first = x.permute(0, 2, 3, 1).reshape(-1, 6)
    cosines = torch.cosine_similarity(locations_first[:, None], match.templates[None], dim=2)
    assert torch.allclose(scores.reshape(-1, 40), 3 * cosines, atol=1e-5)

    out = assign((x, scores))
    assigned = torch.relu(assign.norm(scores.reshape(-1, 40)))
    values = torch.cosine_similarity(assigned[:, None], assign.values[None], dim=2).reshape(3, 5, 5, 6)
    assert torch.allclose(out, x + 0.5 * values.permute(0, 3, 1, 2), atol=1e-5)

    torch.nn.init.constant_(assign.norm.bias, -100.0)  # nothing matches: the student discards the knowledge
    assert torch.equal(assign((x, scores)), x)


def test_tokens_are_locations_too():
    torch.manual_seed(0)
    match, assign = Match(6, 9), Assign(6, 9)
    x = torch.randn(2, 6, 4, 1)
    tokens = x.flatten(2).transpose(1, 2)
    assert torch.allclose(assign(match(x)).flatten(2).transpose(1, 2), assign(match(tokens)), atol=1e-6)


# --- losses


def test_word_matching_is_the_divergence_of_its_definition():
    torch.manual_seed(0)
    scores = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    features, words = torch.randn(7, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    targets = torch.softmax(-5 * torch.cdist(features, words).pow(2), 1)
    wanted = torch.nn.functional.kl_div(scores.log_softmax(1), targets, reduction="batchmean")
    computed = functional.word_matching(scores, features, words, inverse_temperature=5.0)
    assert torch.allclose(computed, wanted)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (computed, wanted)]
    assert torch.allclose(*gradients)
    assert torch.autograd.gradcheck(lambda a: functional.decision_matching(a, targets), (scores,))


def test_decision_matching_takes_zeros_in_targets():
    targets = torch.eye(3)[:2]
    assert functional.decision_matching(torch.tensor([[9e3, 0, 0], [0, 9e3, 0]]), targets) == 0


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_matching_is_finite_for_distant_words(scale: float):
    torch.manual_seed(0)
    scores = torch.randn(4, 6, requires_grad=True)
    loss = functional.word_matching(scores, scale * torch.randn(4, 3), scale * torch.randn(6, 3))
    assert loss.isfinite() and torch.autograd.grad(loss, scores)[0].isfinite().all()


# --- what is prepared


@pytest.fixture(scope="module")
def data() -> ImageData:
    train, test = digits.load(Path(), False)
    return ImageData(Split(train.images[:600], train.labels[:600]), test, 10, load_protocol("digits-demo"),
                     torch.device("cpu"))  # fmt: skip


def teacher_pass_of(data: ImageData, folder: Path, seed: int = 0, **options: Any) -> StoredTeacherPass:
    torch.manual_seed(seed)
    network = data.build("resnet8").requires_grad_(False).eval()
    identity = {"teacher": {"network": "resnet8", "seed": seed}}
    said: list[str] = []
    return StoredTeacherPass(network, ((0.3,) * 3, (0.3,) * 3), data, identity, folder, options.pop("say", said.append),
                        **options)  # fmt: skip


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


def test_computed_once_and_kept_by_content(data: ImageData, tmp_path: Path):
    asked: list[str] = []

    def compute() -> dict[str, Tensor]:
        asked.append("")
        return {"value": torch.randn(3)}

    first = teacher_pass_of(data, tmp_path).stored("numbers 1", {"k": 1}, compute)["value"]
    torch.manual_seed(99)  # the global generators do not matter, and are left alone
    before = torch.get_rng_state()
    again = teacher_pass_of(data, tmp_path)
    assert torch.equal(again.stored("numbers 1", {"k": 1}, compute)["value"], first) and len(asked) == 1
    torch.manual_seed(99)
    other = again.stored("numbers 1", {"k": 2}, compute)["value"]
    assert torch.equal(other, first) and len(asked) == 2 and torch.equal(torch.get_rng_state(), before)
    teacher_pass_of(data, tmp_path, seed=1).stored("numbers 1", {"k": 1}, compute)
    assert len(asked) == 3


@pytest.mark.parametrize("how", ["half", "bit", "list", "numbers"])
def test_a_damaged_file_is_computed_again(data: ImageData, tmp_path: Path, how: str):
    said: list[str] = []
    teacher_pass = teacher_pass_of(data, tmp_path, say=said.append)
    teacher_pass.stored("numbers 1", {}, lambda: {"value": torch.ones(2)})
    (file,) = tmp_path.glob("*.pt")
    content = file.read_bytes()
    place = content.index(torch.ones(2).numpy().tobytes())
    file.write_bytes({
        "half": content[:50],
        "bit": content[:place] + b"\1" + content[place + 1 :],
        "list": to_bytes([torch.ones(2)]),
        "numbers": to_bytes({"value": 2}),
    }[how])  # fmt: skip
    assert teacher_pass.stored("numbers 1", {}, lambda: {"value": torch.ones(2)})["value"].sum() == 2
    assert any("computing it again" in line for line in said)


def test_stopping_loses_only_what_was_being_computed(data: ImageData, tmp_path: Path):
    """Each part is kept as soon as it is there; asking for it again costs no pass."""
    passes: list[int] = []

    def stopping() -> bool:
        passes.append(1)
        return len(passes) > 4

    with pytest.raises(Interrupted):
        subclasses.find(teacher_pass_of(data, tmp_path, stopping=stopping), UNIT, 1, 10, 4, 9)
    times = {file.stat().st_mtime_ns for file in tmp_path.glob("*.pt")}
    assert len(times) == 1  # the discriminants
    whole = subclasses.find(teacher_pass_of(data, tmp_path), UNIT, 1, 10, 4, 9)
    assert times <= {file.stat().st_mtime_ns for file in tmp_path.glob("*.pt")}
    anew = subclasses.find(teacher_pass_of(data, tmp_path / "anew"), UNIT, 1, 10, 4, 9)
    assert all(torch.equal(*pair) for pair in zip(vars(whole).values(), vars(anew).values(), strict=True))


@pytest.fixture
def prepared(data: ImageData, teacher_pass: StoredTeacherPass) -> Iterator[Any]:
    method = kd_methods.build("letkd2", data.build("resnet8"), teacher_pass.network, data.info)
    method.prepare(teacher_pass)
    yield method


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


@pytest.mark.parametrize("student", ["resnet8", "wrn_16_1", "MobileNetV2", "ShuffleV2", "vgg8"])
def test_the_classifier_starts_as_the_code_has_it(student: str):
    """N(0, sqrt(2 / classes)) and no bias; the rest of the student is what its network draws."""
    views = []
    for name in ("letkd1", "student"):
        torch.manual_seed(3)
        student_network, teacher = (
            build_network(student, 100),
            build_network("vgg8" if student == "vgg8" else "wrn_16_1", 100),
        )
        method = kd_methods.build(name, student_network, teacher if name == "letkd1" else None, CIFAR)
        method.adapt(student_network)
        views.append(student_network.module.state_dict())
    other = {key for key in views[0] if not torch.equal(views[0][key], views[1][key])}
    weight = next(key for key in other if key.endswith("weight"))
    assert other <= {weight, weight.replace("weight", "bias")}
    assert views[0][weight].std().item() == pytest.approx((2 / 100) ** 0.5, rel=0.03)
    assert abs(views[0][weight].mean().item()) < 0.01 and not views[0][weight.replace("weight", "bias")].any()


def test_teachers_of_the_recipe_are_crds():
    """The paper's files are; where there are none they are trained as CRD's were."""
    for name, wanted in (
        ("cifar100-letkd", "cifar100-crd240"),
        ("cifar100-letkd-noise40", "cifar100-crd240"),
        ("cifar100-letkd-short", "cifar100-short"),
        ("cifar100-letkd-noise20-short", "cifar100-short"),
        ("tiny-imagenet-letkd", "tiny-imagenet-letkd"),
    ):
        for_teachers = load_protocol(name).for_teachers({})
        assert for_teachers.name == wanted and for_teachers.epochs == load_protocol(name).epochs


def test_a_student_with_larger_maps_is_refused():
    with pytest.raises(UserError, match="teacher maps that are as large"):
        adapted("letkd1", ("ShuffleV2", "resnet8"))


@pytest.mark.slow
def test_probe_reads_classes_off_both_sides_of_the_layer(tmp_path: Path):
    paths = ["--output", str(tmp_path), "--checkpoints", str(tmp_path)]
    chosen = ["letkd", "--preset", "demo", "--pairs", "resnet8-resnet14", "--seeds", "0", "--epochs", "2"]
    chosen += ["--methods", "student,letkd1,letkd2"]
    result = CliRunner().invoke(cli, ["probe", *chosen, *paths])
    assert isinstance(result.exception, UserError) and "run the table first" in str(result.exception)
    assert CliRunner().invoke(cli, [*chosen, *paths, "--no-cost"]).exit_code == 0
    result = CliRunner().invoke(cli, ["probe", *chosen, *paths])
    assert result.exit_code == 0, result.exception
    lines = [line.split(",") for line in result.output.splitlines() if line.count(",") == 7][1:]
    accuracies = {(line[0], line[3]): float(line[4]) for line in lines}
    assert set(accuracies) == {("student", UNIT), ("letkd1", UNIT), ("letkd2", UNIT), ("letkd2", "letkd_intermediate")}
    assert all(50 < value <= 100 for value in accuracies.values()), accuracies


def test_published_probes_stand_beside_ours(tmp_path: Path):
    """On a student that was never trained: what is compared is which line gets which published value."""
    table = tmp_path / "mine.yaml"
    table.write_text(
        "extends: letkd-ablation\nname: mine\npresets:\n"
        "  paper: {protocol: digits-demo, seeds: [0], pairs: [resnet56-resnet20]}\n"
    )
    request = Request(table=str(table), methods=("student", "inter-alpha0-pen", "letkd2"))
    workspace = Workspace(torch.device("cpu"), tmp_path, tmp_path, tmp_path)
    store, protocol = Store(tmp_path), load_protocol("digits-demo")
    data = get_task("digits").open(tmp_path, protocol, torch.device("cpu"))
    for cell in make(request, workspace).cells.values():
        teacher = data.build("resnet56").requires_grad_(False).eval()
        shared_teacher = SharedTeacher(teacher, (protocol.mean, protocol.std), protocol)
        student_run = StudentRun(cell, Group(protocol, data, shared_teacher), store.create(cell))
        student_run.records = [{"epoch": 1, "phase": "", "metrics": {"top1": 0.0}}]
        student_run.finish()
    _, file = probe.report(request, workspace)
    lines = list(csv.DictReader(file.open()))
    published = {(line["row"], line["unit"]): line["published"] for line in lines}
    assert published == {
        ("student", "layer3.0"): "",
        ("inter-alpha0-pen", "layer3.0"): "52.71",
        ("letkd2", "layer3.0"): "51.71",
        ("letkd2", "letkd_intermediate"): "56.36",
    }
    reason = "our protocol deviates from the published one; another teacher"
    for line in lines:
        assert ("supplement table 4" in line["source"]) == (line["reason"] == reason) == bool(line["published"])
