"""Our loop and the field's usual one compute the same: fed the same crops, cells have the same losses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from benchmarks.cost.measuring import Bench
from benchmarks.cost.setup import Suite
from benchmarks.suites import machine_limits as limits
from benchmarks.suites.baseline_loop import BaselineLoop, Pictures
from benchmarks.training.loop import shared
from benchmarks.training.optimizers import WHOLE

PAIR = "resnet14-resnet8"
METHODS = ("student", "kd", "dkd", "dist", "at", "sp", "pkt", "rkd", "fitnet", "block_kd.lite")


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def loops(method: str) -> tuple[Bench, BaselineLoop]:
    """The same cell in both loops, with the same weights."""
    suite = Suite("cpu", 8)
    bench = suite.bench(PAIR, method)
    cell, teacher = bench.student_run.cell, bench.teacher and suite.teacher(PAIR)
    if bench.teacher and teacher:
        teacher.load_state_dict(bench.teacher.network.state_dict())
    baseline = BaselineLoop(cell, suite.protocol, suite.data, teacher, workers=0)
    baseline.student.load_state_dict(bench.student_run.student.state_dict())
    baseline.method.load_state_dict(bench.student_run.method.state_dict())
    assert baseline.student.module.conv1.weight.is_contiguous()
    return bench, baseline


def losses(bench: Bench, baseline: BaselineLoop, steps: int) -> Iterator[tuple[float, float]]:
    student_run = bench.student_run
    for _, batch in zip(range(steps), bench.data.batches(0, 1), strict=False):
        inputs, teacher_outputs = shared(batch, WHOLE, bench.teacher, [student_run])
        before = sum(float(value) for value in student_run.sums.values())
        student_run.step(inputs, teacher_outputs, (1, 0), bench.progress)
        ours = sum(float(value) for value in student_run.sums.values()) - before
        yield ours, baseline.step(inputs.inputs.contiguous(), inputs.labels, inputs.indices)


@pytest.mark.parametrize("method", METHODS)
def test_the_first_loss_is_the_baselines(method: str) -> None:
    ours, theirs = next(losses(*loops(method), steps=1))
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("method", ["kd", "dist", "rkd", "fitnet", "block_kd.lite"])
def test_twenty_steps_are_the_baselines(method: str, double: None) -> None:
    pairs = list(losses(*loops(method), steps=20))
    assert len(pairs) == 20 and pairs[0][0] != pairs[-1][0]
    for ours, theirs in pairs:
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_the_baselines_pictures_are_crops_of_ours() -> None:
    suite = Suite("cpu", 16)
    pictures = Pictures(suite.data)
    image, label, index = pictures[7]
    clean = suite.data.clean(torch.tensor([7])).student()
    assert (label, index) == (int(clean.labels), 7) and image.shape == clean.inputs[0].shape
    protocol = suite.protocol
    padded = TF.pad(Image.fromarray(pictures.images[7]), [protocol.crop_padding])
    possible = [
        TF.hflip(crop) if flipped else crop
        for y in range(9)
        for x in range(9)
        for crop in [TF.crop(padded, y, x, 32, 32)]
        for flipped in (False, True)
    ]
    assert any(torch.equal(image, TF.normalize(TF.to_tensor(crop), protocol.mean, protocol.std)) for crop in possible)


def test_a_group_holds_the_activations_of_one_student() -> None:
    bounds = limits.memory(Suite("cpu", 16).bench(PAIR, *METHODS))
    assert 0.8 * bounds.bound < bounds.peak <= bounds.bound
    assert bounds.step > bounds.outputs > 0 and bounds.teacher > 0
