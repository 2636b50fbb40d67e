"""Behind which layer methods read, cut or insert, where networks go on after their last stage."""

from __future__ import annotations

import pytest
import torch

import kd_methods
from benchmarks.networks import build_network, count
from kd_methods.contract import DataInfo, Progress
from kd_methods.feature.norm import NORM
from kd_methods.feature.simkd import SimKD

CIFAR = DataInfo(50_000, 100, torch.arange(50_000) % 100)


@pytest.mark.parametrize(
    ("teacher", "student", "unit", "size"),
    [
        ("resnet32x4", "ShuffleV2", "layer3.3", 240_640),
        ("ResNet50", "MobileNetV2", "blocks.6.0", 11_706_368),
        ("resnet32x4", "resnet8x4", "layer3.0", 214_016),
        ("wrn_40_2", "wrn_16_2", "relu", 53_760),
    ],
)
def test_simkd_cuts_a_student_before_its_last_convolution_as_its_code_does(
    teacher: str, student: str, unit: str, size: int
) -> None:
    networks = build_network(student, 100), build_network(teacher, 100)
    method = kd_methods.build("simkd", *networks, CIFAR)
    assert isinstance(method, SimKD) and method.student_unit == unit and count(method.projector.parameters()) == size
    adapted = method.adapt(networks[0])
    assert adapted(torch.randn(2, 3, 32, 32), fields=()).logits.shape == (2, 100)


@pytest.mark.parametrize(
    ("teacher", "student", "ours", "theirs"),
    [
        ("wrn_40_2", "wrn_16_2", "block3.1", "block3.5"),
        ("wrn_40_2", "ShuffleV1", "layer3.3", "block3.5"),
        ("resnet32x4", "ShuffleV2", "conv2", "layer3.4"),
        ("resnet32x4", "resnet8x4", "layer3.0", "layer3.4"),
    ],
)
def test_norm_matches_the_sum_before_a_final_bn_and_relu(teacher: str, student: str, ours: str, theirs: str) -> None:
    networks = build_network(student, 100).train(), build_network(teacher, 100).eval()
    method = kd_methods.build("norm", *networks, CIFAR)
    assert isinstance(method, NORM) and (method.student_unit, method.teacher_unit) == (ours, theirs)
    units = method.adapt(networks[0]).units
    assert units[units.index(ours) + 1] == "norm_expand"
    x = torch.randn(2, 3, 32, 32)
    target = networks[1](x, at=(theirs,), fields=())[theirs]
    assert (target.min() < 0) == teacher.startswith("wrn"), "the sum has signs, what ReLU gives has none"


@pytest.mark.parametrize(
    ("schedule", "epochs", "factors"),
    [
        ("authors", 240, {9: 0.1, 10: 0.5, 20: 1.0, 179: 1.0, 180: 0.5, 210: 0.1}),
        ("imagenet", 100, {4: 0.1, 5: 0.5, 15: 0.9, 59: 0.9, 60: 0.5, 80: 0.1}),
        ("constant", 100, {0: 1.0, 99: 1.0}),
    ],
)
def test_norm_s_weight_over_the_epochs(schedule: str, epochs: int, factors: dict[int, float]) -> None:
    method = kd_methods.build("norm", build_network("resnet8"), build_network("resnet14"), CIFAR, schedule=schedule)
    assert isinstance(method, NORM)
    assert {epoch: method._factor(Progress(epoch, epochs)) for epoch in factors} == factors
    # In a shortened run an epoch stands for many, and has the mean of their factors.
    for shortened in (10, 20):
        span = epochs // shortened
        means = [method._factor(Progress(span * i, epochs, span)) for i in range(1, shortened + 1)]
        whole = [method._factor(Progress(epoch, epochs)) for epoch in range(1, epochs + 1)]
        assert means == pytest.approx([sum(whole[i : i + span]) / span for i in range(0, epochs, span)])
