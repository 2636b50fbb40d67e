"""letKD: its layer, where it sits, what it adds, and what it is taught."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import kd_methods
from benchmarks.config.table_spec import load_table
from benchmarks.networks import NetworkView, build_network, count, macs
from kd_methods import functional
from kd_methods.contract import DataInfo
from kd_methods.errors import UserError
from kd_methods.feature._kd_layer import Assign, Match
from kd_methods.functional import matching

CIFAR = DataInfo(50_000, 100, torch.arange(50_000) % 100)
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


@pytest.mark.parametrize("at_once", [matching.AT_ONCE, 3 * 11, 1], ids=["all rows", "three rows", "one row"])
def test_word_matching_is_the_divergence_of_its_definition(at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matching, "AT_ONCE", at_once)
    torch.manual_seed(0)
    scores = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    features, words = torch.randn(7, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    targets = torch.softmax(-5 * torch.cdist(features, words).pow(2), 1)
    wanted = torch.nn.functional.kl_div(scores.log_softmax(1), targets, reduction="batchmean")
    computed = functional.word_matching(scores, features, words, inverse_temperature=5.0)
    assert torch.allclose(computed, wanted)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (computed, wanted)]
    assert torch.allclose(*gradients)
    assert torch.allclose(functional.decision_matching(scores, targets), wanted)
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


@pytest.mark.parametrize("student", ["resnet8", "MobileNetV2", "ShuffleV2"])
def test_the_student_starts_as_under_any_method(student: str):
    """The code's ``classifier_options`` are read nowhere: the classifier is the network's own, as it was drawn."""
    torch.manual_seed(3)
    network, teacher = build_network(student, 100), build_network("wrn_16_1", 100)
    drawn = copy.deepcopy(network.module.state_dict())
    kd_methods.build("letkd1", network, teacher, CIFAR).adapt(network)
    state = network.module.state_dict()
    assert all(torch.equal(state[key], value) for key, value in drawn.items())


def test_a_student_with_larger_maps_is_refused():
    with pytest.raises(UserError, match="teacher maps that are as large"):
        adapted("letkd1", ("ShuffleV2", "resnet8"))
