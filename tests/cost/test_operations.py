"""Operations are those that torch counts, whether a teacher makes its pass for one cell or once for all."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cost.measuring import Bench, random_teacher
from benchmarks.cost.operations import CountedTeacher
from benchmarks.cost.setup import Suite

PAIR = "resnet14-resnet8"
METHODS = ("student", "kd", "fitnet", "ofd", "ab", "crd", "simkd", "norm", "fcfd", "block_kd", "crld", "ofa", "ickd+kd")
"""Without a teacher; logits, features, batch statistics of the teacher, a first phase, what runs the networks' ends or
changes the student, two views, further heads, two methods at once."""


def convolution_backward(grad: Any, x: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """torch's own formula leaves out the groups."""
    return 2 * math.prod(weight) * math.prod((x if rest[4] else grad)[2:]) * x[0] * sum(rest[7][:2])


def by_torch(bench: Bench) -> int:
    corrected = {torch.ops.aten.convolution_backward: convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=corrected) as counter:
        bench.step()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite("cpu", 4)


@pytest.fixture(scope="module")
def counted(suite: Suite) -> CountedTeacher:
    ref = suite.cell("kd", PAIR).teacher
    assert ref
    teacher = random_teacher(ref, suite.protocol, suite.data, CountedTeacher)
    assert isinstance(teacher, CountedTeacher)
    return teacher


@pytest.mark.parametrize("method", METHODS)
def test_they_are_torchs(suite: Suite, counted: CountedTeacher, method: str) -> None:
    for phase in (0, 1):
        alone, by_other, together = (
            Bench([suite.cell(method, PAIR)], suite.protocol, suite.data, teacher=teacher)
            for teacher in (None, None, counted)
        )
        for bench in (
            alone,
            by_other,
            together,
        ):  # their first steps: later ones may differ
            bench.go_to(bench.student_run.first_epoch if phase else 1)
        first = alone.operations()
        assert sum(first) == by_torch(by_other) > 0
        assert together.operations() == first
