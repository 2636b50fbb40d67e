"""Detection: the stand-in for mmcv's operators, losses, methods on real detectors, cells that resume exactly."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing.forkserver
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kd_methods
from benchmarks import networks
from benchmarks.common.files import write_json
from benchmarks.common.places import ROOT
from benchmarks.common.weights import load_weights
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.config.table_spec import load_table, pair_settings
from benchmarks.detection import detectors, executor
from benchmarks.driver.plan import Request
from benchmarks.driver.reproduce import Options, reproduce
from benchmarks.store.cell import TeacherRef
from benchmarks.store.cells import Distillation, make_cell, student_cell
from benchmarks.store.runs import Store
from benchmarks.tasks import get_task
from benchmarks.training.failures import Interrupted
from kd_methods import functional, registry
from kd_methods.contract import DataInfo, Progress
from kd_methods.errors import DiskError, UserError

pytest.importorskip("mmdet", reason="the extra [detection] is not installed")

CPU = torch.device("cpu")
TEACHER, STUDENT = "faster_rcnn_small_r18x2", "faster_rcnn_small_r18x4"
DETECTION = [name for name in kd_methods.available() if kd_methods.card(name).modality == "detection"]
REGIONS = ["kd", "dkd", "dist", "nkd", "ttm", "wttm", "wsld", "ctkd"]
DENSE = [name for name in DETECTION if "dense" in registry.get(name).needs.student_units]
TWO_STAGE = [*(name for name in DETECTION if name not in DENSE), *REGIONS, "reviewkd.fpn+dkd", "kd@ls"]


@pytest.fixture(scope="module", autouse=True)
def _own_forkserver():
    """One that has mmdetection: other tests may have started one without."""
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the drawn shapes."""
    root = tmp_path_factory.mktemp("data")
    get_task("shapes").samples(root)
    return root


# --- the stand-in for mmcv._ext ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ops() -> Any:
    detectors.prepare()
    import mmcv.ops

    return mmcv.ops


def boxes(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([low, low + 2 + 25 * torch.rand(count, 2, generator=generator)], 1), torch.rand(
        count, generator=generator
    )


def overlap(a: Tensor, b: Tensor, offset: int) -> float:
    width = max(0.0, float(min(a[2], b[2]) - max(a[0], b[0])) + offset)
    height = max(0.0, float(min(a[3], b[3]) - max(a[1], b[1])) + offset)
    size = lambda c: float(c[2] - c[0] + offset) * float(c[3] - c[1] + offset)  # noqa: E731
    return width * height / (size(a) + size(b) - width * height)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_what_no_better_box_covers(ops: Any, offset: int):
    corners, scores = boxes(60)
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(corners[i], corners[j], offset) <= 0.4 for j in kept):
            kept.append(i)
    found, places = ops.nms(corners, scores, 0.4, offset=offset)
    assert places.tolist() == kept and len(kept) < 60
    assert torch.equal(found, torch.cat([corners, scores[:, None]], 1)[kept])


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_lowers_scores_by_overlap(ops: Any, method: str):
    corners, scores = boxes(40, 1)
    left, expected = {i: float(s) for i, s in enumerate(scores)}, []
    while left:
        best = max(left, key=left.__getitem__)
        expected.append((best, left.pop(best)))
        for i in list(left):
            iou = overlap(corners[best], corners[i], 0)
            factors = {"gaussian": math.exp(-(iou**2) / 0.5), "linear": 1 - iou if iou >= 0.3 else 1.0}
            left[i] *= factors.get(method, 0.0 if iou >= 0.3 else 1.0)
            if left[i] < 0.05:
                del left[i]
    found, places = ops.soft_nms(corners, scores, 0.3, 0.5, 0.05, method)
    assert places.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(found[:, 4], torch.tensor([s for _, s in expected]))


def sampled(x: Tensor, roi: Tensor, scale: float, size: int, ratio: int) -> Tensor:
    """RoIAlign of one region by its definition: averages of bilinear samples, from an image (C, H, W)."""
    left, top, right, bottom = (roi * scale - 0.5).unbind()
    step = (right - left) / size, (bottom - top) / size
    out = []
    for row in range(size):
        for column in range(size):
            total = 0
            for i in range(ratio):
                for j in range(ratio):
                    px = left + step[0] * (column + (j + 0.5) / ratio)
                    py = top + step[1] * (row + (i + 0.5) / ratio)
                    total = total + bilinear(x, float(px), float(py))
            out.append(total / ratio**2)
    return torch.stack(out, 1).unflatten(1, (size, size))


def bilinear(x: Tensor, px: float, py: float) -> Tensor:
    height, width = x.shape[1:]
    if not (-1 <= px <= width and -1 <= py <= height):
        return x[:, 0, 0] * 0
    px, py = min(max(px, 0.0), width - 1.0), min(max(py, 0.0), height - 1.0)
    x0, y0 = min(int(px), width - 1), min(int(py), height - 1)
    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
    a, b = px - x0, py - y0
    return (x[:, y0, x0] * (1 - a) + x[:, y0, x1] * a) * (1 - b) + (x[:, y1, x0] * (1 - a) + x[:, y1, x1] * a) * b


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_roi_align_and_its_gradient(ops: Any, dtype: torch.dtype, tolerance: float):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 10, dtype=dtype)
    corners, _ = boxes(5, 2)
    regions = torch.cat([torch.tensor([0.0, 1, 1, 0, 1])[:, None], corners], 1)
    ours, plain = x.clone().requires_grad_(), x.clone().float().requires_grad_()
    found = ops.roi_align(ours, regions.to(dtype), 3, 0.25, 2, "avg", True)
    expected = torch.stack([sampled(plain[int(r[0])], r[1:], 0.25, 3, 2) for r in regions.to(dtype).float()])
    weights = torch.randn_like(expected)
    found.backward(weights.to(dtype))
    expected.backward(weights)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ours.grad.float(), plain.grad, atol=3 * tolerance, rtol=3 * tolerance)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_focal_loss_and_its_gradient(ops: Any, dtype: torch.dtype, tolerance: float, weighted: bool):
    torch.manual_seed(1)
    x = (3 * torch.randn(7, 4)).to(dtype)
    target = torch.tensor([0, 3, 4, 1, 4, 2, 2])  # 4 is background
    weight = torch.tensor([1.0, 2, 0.5, 3]).to(dtype) if weighted else None
    ours, plain = x.clone().requires_grad_(), x.clone().double().requires_grad_()
    p = plain.sigmoid()
    hot = F.one_hot(target, 5)[:, :4].bool()
    expected = torch.where(hot, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
    if weight is not None:
        expected = expected * torch.cat([weight.double(), torch.ones(1).double()])[target][:, None]
    found = ops.sigmoid_focal_loss(ours, target, 2.0, 0.25, weight, "sum")
    found.backward()
    expected.sum().backward()
    torch.testing.assert_close(found.double(), expected.sum(), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ours.grad.double(), plain.grad, atol=tolerance, rtol=tolerance)


def test_other_operators_are_there_and_say_what_is_missing(ops: Any):
    with pytest.raises(NotImplementedError, match=r"'deform_conv_forward' is not among those.*compiled mmcv"):
        ops.DeformConv2dPack(2, 2, 3)(torch.randn(1, 2, 5, 5))


# --- losses -----------------------------------------------------------------------------------------------------------


def test_object_masks_weigh_by_the_smallest_object():
    own = torch.tensor([[0.0, 0, 15, 15], [8, 8, 31, 31]]), torch.zeros(0, 4)
    foreground, background = functional.object_masks(own, (32, 32), (8, 8))
    expected = torch.zeros(8, 8)
    expected[2:8, 2:8] = 1 / 49  # from 2 to ceil(7.75), both counted
    expected[0:5, 0:5] = torch.maximum(expected[0:5, 0:5], torch.tensor(1 / 25))
    torch.testing.assert_close(foreground[0], expected)
    assert foreground[1].count_nonzero() == 0
    torch.testing.assert_close(background[0], (expected == 0) / (expected == 0).sum())
    torch.testing.assert_close(background[1], torch.full((8, 8), 1 / 64))


def test_focal_features_by_loops():
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    masks = torch.rand(2, 4, 5), torch.rand(2, 4, 5)
    places, channels = torch.zeros(2, 2, 4, 5), torch.zeros(2, 2, 3)
    for k, x in enumerate((s, t)):
        for b in range(2):
            places[k, b] = 20 * (x[b].abs().mean(0).flatten() / 0.5).softmax(0).view(4, 5)
            channels[k, b] = 3 * (x[b].abs().mean((1, 2)) / 0.5).softmax(0)
    error = sum((s[:, c] - t[:, c]) ** 2 * places[1] * channels[1, :, c, None, None] for c in range(3))
    expected = [(error * mask).sum() / 2 for mask in masks]
    expected.append(((places[0] - places[1]).abs().sum() + (channels[0] - channels[1]).abs().sum()) / 2)
    torch.testing.assert_close(torch.stack(functional.focal_features(s, t, *masks)), torch.stack(expected))


def test_channel_wise_by_loops():
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = 0.0
    for b in range(2):
        for c in range(3):
            p, q = (t[b, c].flatten() / 2).softmax(0), (s[b, c].flatten() / 2).softmax(0)
            expected += float((p * (p / q).log()).sum())
    assert float(functional.channel_wise(s, t, temperature=2.0)) == pytest.approx(4 * expected / 6, rel=1e-5)


def test_pearson_is_one_minus_the_correlation():
    torch.manual_seed(0)
    s, t = torch.randn(4, 3, 6, 5), torch.randn(4, 3, 6, 5)
    rows = [(x[:, c].flatten()) for c in range(3) for x in (s, t)]
    correlations = [torch.corrcoef(torch.stack(rows[i : i + 2]))[0, 1] for i in (0, 2, 4)]
    expected = 1 - torch.stack(correlations).mean()
    # The sum over N elements stands over N - 1 in the standard deviation.
    assert float(functional.pearson(s, t)) == pytest.approx(float(expected) * 119 / 120, rel=1e-4)
    assert float(functional.pearson(3 * t + 1, t)) == pytest.approx(0, abs=1e-6)


def test_localization_agrees_with_mmdet():
    detectors.prepare()
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss

    torch.manual_seed(0)
    s, t, weights = torch.randn(6, 4, 17) * 4, torch.randn(6, 4, 17) * 4, torch.rand(6)
    theirs = KnowledgeDistillationKLDivLoss(loss_weight=0.25, T=10)
    each = weights[:, None].expand(-1, 4).reshape(-1)
    total = theirs(s.view(-1, 17), t.view(-1, 17), weight=each, avg_factor=4.0) / weights.sum().clamp(min=1)
    assert float(0.25 * functional.localization(s, t, weights)) == pytest.approx(float(total), rel=1e-5)
    summed = theirs(s.view(-1, 17), t.view(-1, 17), weight=each, avg_factor=4.0)
    assert float(0.25 * functional.localization(s, t, weights, normalized=False)) == pytest.approx(
        float(summed), rel=1e-5
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: functional.channel_wise(s, t),
        lambda s, t: functional.pearson(s, t),
        lambda s, t: torch.stack(functional.focal_features(s, t, torch.ones(2, 4, 5), torch.ones(2, 4, 5))).sum(),
        lambda s, t: functional.localization(s[:, :4, :, 0], t[:, :4, :, 0], torch.ones(2)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_no_gradient_where_both_agree_and_finite_far_off(loss: Callable[..., Tensor], scale: float):
    torch.manual_seed(0)
    t = torch.randn(2, 4, 4, 5) * scale
    s = t.clone().requires_grad_()
    loss(s, t).backward()
    assert float(s.grad.abs().max()) < 1e-5
    far = torch.randn_like(t) * scale
    assert torch.isfinite(loss(far.half(), t.half()))


# --- methods on detectors ---------------------------------------------------------------------------------------------


def batch(detector: detectors.Detector, images: int = 2) -> dict[str, Any]:
    """Images of two coloured rectangles, as the detector's preprocessor gives them."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    generator = torch.Generator().manual_seed(0)
    raw, samples = [], []
    for number in range(images):
        image = torch.randint(0, 60, (3, 64, 64), generator=generator, dtype=torch.uint8)
        corners = torch.tensor([[4.0, 6, 30, 34], [34, 30, 60, 58]])
        for left, top, right, bottom in corners.int().tolist():
            image[number % 3, top:bottom, left:right] = 220
        sample = DetDataSample(
            metainfo={"img_shape": (64, 64), "ori_shape": (64, 64), "scale_factor": (1.0, 1.0), "img_id": number}
        )
        sample.gt_instances = InstanceData(bboxes=corners, labels=torch.tensor([0, 2]))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        raw.append(image)
        samples.append(sample)
    return detector.module.data_preprocessor({"inputs": raw, "data_samples": samples}, True)


@pytest.fixture(scope="module")
def pair() -> tuple[detectors.Detector, detectors.Detector]:
    torch.manual_seed(0)
    student, teacher = networks.build_network(STUDENT, 3), networks.build_network(TEACHER, 3)
    return student, teacher.requires_grad_(False).eval()


@pytest.mark.parametrize("name", TWO_STAGE)
def test_a_step_of_every_method(pair: Any, name: str):
    student, teacher = pair
    torch.manual_seed(0)
    method = kd_methods.build(name, student, teacher, DataInfo(64, 4)).train()
    before = {key: value.clone() for key, value in teacher.module.state_dict().items()}
    given = batch(student)
    student.zero_grad(), student.train()
    student_pass = student.training_pass(given["inputs"], given["data_samples"])
    kept = teacher.teacher_pass(given["inputs"], student_pass, logits=True)
    losses = method.losses(student_pass.outputs, kept, student_pass.batch, Progress(30, 240))
    terms = losses.terms()
    assert all(torch.isfinite(term) and term.ndim == 0 for term in terms.values())
    assert losses.distill and all(float(term.detach()) != 0 for term in terms.values())
    losses.total().backward()
    idle = [key for key, p in method.named_parameters() if p.grad is None]
    assert not idle
    assert all(p.grad is not None for p in student.module.neck.parameters())
    after = teacher.module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(p.grad is not None for p in teacher.parameters())


def test_the_task_loss_is_the_detectors_own(pair: Any):
    student, _ = pair
    given = batch(student)
    student.train()
    torch.manual_seed(0)
    theirs, _ = student.module.parse_losses(student.module.loss(given["inputs"], given["data_samples"]))
    torch.manual_seed(0)
    student_pass = student.training_pass(given["inputs"], given["data_samples"])
    assert torch.equal(student_pass.batch.loss(student_pass.outputs.logits), theirs)
    stone = student.resume("pyramid", student_pass.outputs["pyramid"])
    torch.testing.assert_close(stone.logits, student_pass.outputs.logits)
    regions = sum(value for key, value in student_pass.terms.items() if key in ("loss_cls", "loss_bbox"))
    torch.testing.assert_close(student_pass.batch.loss(stone), regions)
    other = 2 * student_pass.outputs.logits
    torch.testing.assert_close(student_pass.batch.loss(other), F.cross_entropy(other, student_pass.batch.labels))


def test_labels_are_those_of_the_regions(pair: Any):
    student, _ = pair
    given = batch(student)
    student_pass = student.train().training_pass(given["inputs"], given["data_samples"])
    regions, labels = student_pass.regions, student_pass.batch.labels
    assert len(regions) == len(labels) == len(student_pass.outputs.logits) and student_pass.outputs.logits.shape[1] == 4
    for region, label in zip(regions, labels, strict=True):
        objects = student_pass.batch.boxes[int(region[0])]
        ious = torch.tensor([overlap(region[1:], one, 0) for one in objects])
        assert int(label) == ([0, 2][int(ious.argmax())] if ious.max() >= 0.5 else 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rkd", "reads pooled, which networks for detection lack"),
        ("block_kd", "reads blocks"),
        ("fitnet", "is made for images, not for detection"),
        ("tinybert", "is made for text"),
        ("ld", "distributions of box edges, as GFL does"),
    ],
)
def test_methods_that_are_not_for_detectors_say_so(pair: Any, name: str, words: str):
    with pytest.raises(UserError, match=words):
        kd_methods.build(name, *pair, DataInfo(64, 4))


def test_detection_methods_are_not_for_images():
    views = [networks.build_network(name, 10, (3, 16, 16)) for name in ("resnet8", "resnet14")]
    with pytest.raises(UserError, match="method 'fgd' is made for detection, not for images"):
        kd_methods.build("fgd", *views, DataInfo(64, 10))


@pytest.mark.parametrize("name", ["retinanet_r18", "gfl_small_r18x4"])
def test_one_stage_detectors(name: str):
    detector = networks.build_network(name, 3)
    given = batch(detector)
    student_pass = detector.train().training_pass(given["inputs"], given["data_samples"])
    total, _ = detector.module.parse_losses(detector.module.loss(given["inputs"], given["data_samples"]))
    torch.testing.assert_close(student_pass.batch.loss(student_pass.outputs.logits), total, atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="sigmoids"):
        kd_methods.build("kd", detector, detector, DataInfo(64, 4))
    for name in DENSE if detector.distributions else ():
        assert kd_methods.build(name, detector, detector, DataInfo(64, 4))
    for name in () if detector.distributions else DENSE:
        with pytest.raises(UserError, match="as GFL does"):
            kd_methods.build(name, detector, detector, DataInfo(64, 4))


@pytest.fixture(scope="module")
def dense_pair() -> tuple[detectors.Detector, detectors.Detector]:
    torch.manual_seed(0)
    student, teacher = networks.build_network("gfl_small_r18x4", 3), networks.build_network("gfl_small_r18x2", 3)
    return student, teacher.requires_grad_(False).eval()


@pytest.mark.parametrize("name", DENSE)
def test_a_step_of_every_method_on_dense_answers(dense_pair: Any, name: str):
    student, teacher = dense_pair
    before = {key: value.clone() for key, value in teacher.module.state_dict().items()}
    given = batch(student)
    student.zero_grad(), student.train()
    student_pass = student.training_pass(given["inputs"], given["data_samples"], ("dense", "anchor_relations"))
    dense, kept = student_pass.outputs["dense"], teacher.teacher_pass(given["inputs"], student_pass, logits=False)
    assert dense.edges.shape == (len(dense.level), 4, 17) and dense.classes.shape == (len(dense.level), 3)
    assert dense.positive.any() and not (dense.positive & (student_pass.outputs["anchor_relations"].valuable > 0)).all()
    losses = kd_methods.build(name, student, teacher, DataInfo(64, 4)).losses(
        student_pass.outputs, kept, student_pass.batch, Progress(1, 1)
    )
    assert all(torch.isfinite(term) and float(term.detach()) > 0 for term in losses.terms().values())
    losses.total().backward()
    assert all(p.grad is not None for p in student.module.bbox_head.gfl_reg.parameters())
    assert all(torch.equal(teacher.module.state_dict()[key], value) for key, value in before.items())
    # Where both say the same, there is nothing to learn but the task.
    method = kd_methods.build(name, student, teacher, DataInfo(64, 4))
    same = method.losses(student_pass.outputs, student_pass.outputs, student_pass.batch, Progress(1, 1))
    assert all(float(term.detach()) == pytest.approx(0, abs=1e-6) for term in same.distill.values())


def test_places_lie_as_the_features_do(dense_pair: Any):
    """The regions found at a place are those of its own anchor: told by the features' own coordinates."""
    student, _ = dense_pair
    given = batch(student)
    student_pass = student.train().training_pass(given["inputs"], given["data_samples"], ("dense", "anchor_relations"))
    dense, relations = student_pass.outputs["dense"], student_pass.outputs["anchor_relations"]
    for number, features in enumerate(student_pass.outputs.stages):
        here = dense.level == number
        images, _, height, width = features.shape
        near = relations.near[here].view(images, height, width)
        stride = given["inputs"].shape[-1] // width
        for image, row, column in near.nonzero().tolist():
            # The anchor of a place covers eight strides around it, and so meets the object that it is near to.
            x, y = column * stride, row * stride
            left, top, right, bottom = student_pass.batch.boxes[image].unbind(1)
            assert ((left < x + 4 * stride) & (right > x - 4 * stride) & (top < y + 4 * stride)).any() and bottom.any()
    assert relations.near.any()


def test_valuable_region_by_loops():
    """By the definition, anchor by anchor and object by object."""
    generator = torch.Generator().manual_seed(3)
    counts = [40, 12, 3]
    low = torch.rand(55, 2, generator=generator) * 60
    sides = torch.cat([torch.full((n, 1), side) for n, side in zip(counts, (12.0, 24.0, 48.0), strict=True)])
    anchors, objects = torch.cat([low, low + sides], 1), torch.tensor([[10.0, 10, 40, 34], [30, 28, 66, 70]])
    expected = torch.zeros(55)
    for corners in objects:
        centre = (corners[:2] + corners[2:]) / 2
        candidates, start = [], 0
        for count in counts:
            far = [float(((anchors[i, :2] + anchors[i, 2:]) / 2 - centre).norm()) for i in range(start, start + count)]
            candidates += [start + i for i in sorted(range(count), key=far.__getitem__)[:9]]
            start += count
        values = torch.tensor([overlap(anchors[i], corners, 0) for i in candidates])
        threshold = float(values.mean() + values.std())
        for i, anchor in enumerate(anchors):
            hull = torch.cat([torch.minimum(anchor[:2], corners[:2]), torch.maximum(anchor[2:], corners[2:])])
            apart = ((anchor[:2] + anchor[2:]) / 2 - centre).pow(2).sum() / (hull[2:] - hull[:2]).pow(2).sum()
            distance = overlap(anchor, corners, 0) - float(apart)
            if 0.25 * threshold <= distance < threshold:
                expected[i] = max(float(expected[i]), overlap(anchor, corners, 0))
    found = functional.valuable_region(anchors, counts, objects)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert 0 < int((found > 0).sum()) < 55
    assert not functional.valuable_region(anchors, counts, objects[:0]).any()
    near = functional.near_region(anchors, objects)
    best = [max(overlap(a, corners, 0) for a in anchors) for corners in objects]
    assert near.tolist() == [
        any(overlap(a, corners, 0) > 0.5 * top for corners, top in zip(objects, best, strict=True)) for a in anchors
    ]


def test_classes_of_places_are_averaged_within_levels():
    torch.manual_seed(0)
    s, t, level = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 0, 2, 2, 2])
    p, q = (t / 2).softmax(1), (s / 2).softmax(1)
    each = 4 * (p * (p / q).log()).mean(1)
    assert float(functional.place_classes(s, t, level)) == pytest.approx(
        float(each[:2].mean() + each[2:].mean()), rel=1e-5
    )
    assert float(functional.place_classes(s[:0], t[:0], level[:0])) == 0


def test_inheriting_takes_neck_and_heads(pair: Any):
    student, teacher = networks.build_network(STUDENT, 3), pair[1]
    networks.init_from(student, teacher, "heads")
    own, theirs = student.module.state_dict(), teacher.module.state_dict()
    heads = [key for key in own if key.startswith(("rpn_head", "roi_head", "neck.fpn"))]
    assert heads and all(torch.equal(own[key], theirs[key]) for key in heads)
    lateral = "neck.lateral_convs.0.conv.weight"
    assert own[lateral].shape != theirs[lateral].shape  # the backbone's widths differ there
    with pytest.raises(UserError, match="detectors from heads"):
        networks.init_from(student, teacher, "first")


def test_a_configuration_of_mmdet_by_name_or_file(tmp_path: Path):
    path = detectors._config_path("mmdet::retinanet_r18_fpn_1x_coco")
    assert detectors._config_path(str(path)) == path
    for name, words in {
        "mmdet::retinanet_r18_fpn_2x_coco": "configuration of mmdet.*retinanet_r18_fpn_1x_coco",
        "none.py": "detector",
        "faster_rcnn_r19": "faster_rcnn_r1",
    }.items():
        with pytest.raises(UserError, match=words):
            networks.check(name)


# --- cells ------------------------------------------------------------------------------------------------------------

PROTOCOL = """
extends: shapes-demo
name: tiny
epochs: 2
recipe_epochs: 2
batch_size: 2
milestones: [1]
detection: {iterations: 3, short_sides: [48, 64], long_side: 96, test_side: 48, workers: 1}
"""
TABLE = """
name: tiny
title: A tiny table of detection
extra: detection
pairs: [{id: small, teacher: faster_rcnn_small_r18x2, student: faster_rcnn_small_r18x4}]
tasks: [{task: shapes, metric: mAP}, {task: shapes, metric: AP50}]
methods: [student, block_kd.fpn, {id: fgd.heads, method: fgd, init: heads}, rkd]
presets: {paper: {protocol: tiny.yaml, seeds: [0]}}
"""


@pytest.fixture
def table(tmp_path: Path) -> str:
    (tmp_path / "protocols").mkdir()
    (tmp_path / "tiny.yaml").write_text(PROTOCOL)
    (tmp_path / "table.yaml").write_text(TABLE)
    return str(tmp_path / "table.yaml")


@pytest.fixture
def run(table: str, shapes: Path, tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    said: list[str] = []

    def call(name: str, **request: Any) -> list[str]:
        workspace = Workspace(CPU, shapes, tmp_path / "checkpoints", tmp_path / name, say=said.append)
        reproduce(Request(table, **{"preset": "paper", **request}), workspace, Options(costs=False))
        return said

    yield call


def students(root: Path) -> dict[str, dict[str, Tensor]]:
    found = {}
    for path in sorted((root / "runs").iterdir()):
        label = json.loads((path / "cell.json").read_text())["label"]
        if (path / "student.pt").is_file():
            found[label] = load_weights(path / "student.pt")
    return found


def same(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> bool:
    return a.keys() == b.keys() and all(
        a[label].keys() == b[label].keys() and all(torch.equal(a[label][k], b[label][k]) for k in a[label])
        for label in a
    )


def test_a_matrix_to_its_table_and_again_after_kills(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    said = run("whole")
    text = (tmp_path / "whole" / "tables" / "tiny-paper" / "tiny.tex").read_text()
    assert r"\begin{tabular}" in text and "AP50" in text and "starts from its teacher's neck and heads" in text
    assert any("rkd" in line and "n/a" in line for line in said) or "n/a" in text
    whole = students(tmp_path / "whole")
    assert len(whole) == 4  # the teacher among them
    for path in (tmp_path / "whole" / "runs").glob("*/metrics.json"):
        for record in json.loads(path.read_text()):
            assert set(record["metrics"]) >= {"mAP", "AP50", "AP75"} and record["losses"]["task"] > 0
    # mmengine's own record of the run lies beside.
    assert list((tmp_path / "whole" / "runs").glob("*/mmengine/*/vis_data/*.json"))

    hear, killed = executor._in_processes, set[str]()

    def killing(what: str, jobs: Any, heard: Any, stopping: Any = lambda: False) -> Any:
        """The first process of a cell is killed in its second epoch."""

        def listen(message: Any) -> None:
            heard(message)
            if message[0] == "step" and message[1:] == (1, 0) and jobs[0].cell.key not in killed:
                killed.add(jobs[0].cell.key)
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGKILL)

        last = hear(what, jobs, listen, stopping)
        return hear(what, jobs, heard, stopping) if last[0] == "failed" else last

    monkeypatch.setattr(executor, "_in_processes", killing)
    run("killed", methods=("block_kd.fpn",))
    assert len(killed) == 2
    logs = [path.read_text() for path in (tmp_path / "killed" / "runs").glob("*/mmengine/console.log")]
    assert sum("resumed epoch: 0, iter: 3" in log for log in logs) == 2
    again = students(tmp_path / "killed")
    assert len(again) == 2 and same(again, {label: whole[label] for label in again})


def job_of(path: Path, shapes: Path, update: dict[str, Any] | None = None, **changes: Any) -> executor.Job:
    """A student's job under the tiny protocol with some changes."""
    protocol = load_protocol(str(path / "tiny.yaml")).changed(**changes).model_copy(update=update)
    cell = student_cell(STUDENT, protocol, shapes, {})
    return executor.Job(cell, protocol, shapes, "cpu", 1, (), path / "job")


def train(
    job: executor.Job,
    root: Path,
    stopping: Callable[[], bool] = lambda: False,
    report: Callable[[Any, str], None] = lambda *_: None,
) -> Store:
    """Train a job's cell as the driver does; the store."""
    store = Store(root)
    where = store, job.protocol, None, CPU, lambda ref: job.teacher, report, print, stopping
    executor.run([job.cell], executor.Context(*where, data_root=job.data_root))
    return store


def test_a_cell_stops_on_request_and_goes_on(
    shapes: Path, tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]
):
    job = job_of(tmp_path, shapes)
    cell, runs = job.cell, {}
    for name in ("whole", "stopped"):
        store, steps, events = Store(tmp_path / name), [0], []

        def report(watched: Any, event: str, steps: list[int] = steps, events: list[str] = events) -> None:
            steps[0] += event == "step"
            events.append(event)

        def stopping(name: str = name, steps: list[int] = steps) -> bool:
            return name == "stopped" and 1 <= steps[0] < 4

        if name == "stopped":
            with pytest.raises(Interrupted):
                train(job, store.root, stopping, report)
            assert store.run(cell).state == "interrupted"
            steps[0] = 4
            # As if other threads had computed the beginning.
            environments: list[Any] = store.run(cell).environments
            environments[-1]["arithmetic"]["threads"] += 1
            write_json(store.run(cell) / "environment.json", environments)
        train(job, store.root, stopping, report)
        assert store.run(cell).state == "done" and events[-1] == "done"
        runs[name] = load_weights(store.run(cell) / "student.pt")
    assert all(torch.equal(runs["whole"][key], value) for key, value in runs["stopped"].items())
    (change,) = store.run(cell).status["remarks"]
    assert re.fullmatch(r"computed with threads \d+ instead of \d+ from epoch 1 on", change)
    assert f"{cell.label}  {change}, so it ends in other bits" in capsys.readouterr().out
    assert "resumed epoch" in (store.run(cell) / "mmengine" / "console.log").read_text()
    # What is saved is the plain detector: it loads into mmdet's own, and nothing of a method is with it.
    networks.build_network(STUDENT, 3).module.load_state_dict(runs["whole"], strict=True)


def test_a_stop_before_the_first_step_is_no_failure(shapes: Path, tmp_path: Path, table: str):
    job = job_of(tmp_path, shapes)
    with pytest.raises(Interrupted):
        train(job, tmp_path / "out", stopping=lambda: True)
    assert Store(tmp_path / "out").run(job.cell).state not in ("failed", "done")


@pytest.mark.slow
def test_two_processes_share_each_batch_and_average_their_gradients(shapes: Path, tmp_path: Path, table: str):
    from benchmarks.detection import runner as detection

    own = job_of(tmp_path, shapes, processes=2).detection
    one = own.model_copy(update={"iterations": 1, "workers": 0, "warmup": 0})
    job = job_of(tmp_path, shapes, {"detection": one, "epochs": 1, "milestones": ()})
    protocol = job.protocol
    store = train(job, tmp_path / "out")
    status = store.run(job.cell).status
    assert status["state"] == "done", status
    trained = load_weights(store.run(job.cell) / "student.pt")

    alone, places = [], []
    for rank in range(2):
        folder = tmp_path / f"rank{rank}"
        folder.mkdir()
        runner, hook = detection.set_up(dataclasses.replace(job, rank=rank), None, folder)
        model: Any = runner.model.train()
        data = next(iter(runner.train_dataloader))
        places += [sample.img_id for sample in data["data_samples"]]
        hook.before_train_iter(runner, 0)
        prepared = model.data_preprocessor(data, True)
        losses = model(**prepared, mode="loss")
        model.parse_losses(losses)[0].backward()
        alone.append(dict(model.student.named_parameters()))
    assert len(set(places)) == len(places) == protocol.batch_size
    norm = torch.stack(
        [((a.grad + b.grad) / 2).norm() for a, b in zip(*(p.values() for p in alone), strict=True)]
    ).norm()
    clip = min(1.0, protocol.optimizer.clip / (float(norm) + 1e-6))
    for name, first in alone[0].items():
        slope = clip * (first.grad + alone[1][name].grad) / 2 + protocol.optimizer.weight_decay * first
        expected = first - protocol.optimizer.lr * slope
        torch.testing.assert_close(trained[name], expected.detach(), atol=1e-6, rtol=1e-4, msg=name)


def test_two_processes_go_on_after_one_of_them_is_killed(
    shapes: Path, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
):
    job = job_of(tmp_path, shapes, processes=2, precision="bf16")
    whole, run_processes, seen = train(job, tmp_path / "whole"), executor._in_processes, list[Any]()

    def killing(what: str, jobs: Any, hear: Any, stopping: Any) -> Any:
        def listen(message: Any) -> None:
            hear(message)
            if message[:2] == ("step", 1) and not seen:
                seen.extend(multiprocessing.active_children())
                os.kill(max(child.pid for child in seen), signal.SIGKILL)

        return run_processes(what, jobs, listen, stopping)

    monkeypatch.setattr(executor, "_in_processes", killing)
    killed = train(job, tmp_path / "killed")
    status = killed.run(job.cell).status
    assert status["state"] == "failed" and "process 1 ended with exit code -9" in status["message"]
    assert len(seen) == 2 and not any(child.is_alive() for child in seen)
    train(job, tmp_path / "killed")
    log = (killed.run(job.cell) / "mmengine" / "console.log").read_text()
    assert "resumed epoch: 0, iter: 3" in log
    ends = [load_weights(store.run(job.cell) / "student.pt") for store in (whole, killed)]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert whole.run(job.cell).metrics[-1]["losses"] == killed.run(job.cell).metrics[-1]["losses"]
    assert not Path(".dist_test").exists()


def test_the_optimizer_is_the_protocols(shapes: Path, tmp_path: Path, table: str):
    from benchmarks.detection import runner as detection

    job = job_of(tmp_path, shapes)
    job.path.mkdir()
    runner, _ = detection.set_up(job, None, job.path)
    (group,) = runner.build_optim_wrapper(runner.optim_wrapper).optimizer.param_groups
    own = job.protocol.optimizer
    assert {name: group[name] for name in ("momentum", "weight_decay", "nesterov", "lr")} == {
        "momentum": 0.9, "weight_decay": own.weight_decay, "nesterov": False, "lr": own.lr,
    }  # fmt: skip


def test_a_file_that_cannot_be_read_is_no_refusal(shapes: Path, tmp_path: Path, table: str):
    """A cell that is refused is not tried again; one whose teacher's file was damaged is."""
    protocol = load_protocol(str(tmp_path / "tiny.yaml"))
    (tmp_path / "teacher.pt").write_bytes(b"nothing")
    cell = make_cell(protocol, "", STUDENT, Distillation("kd", TeacherRef(TEACHER, (), (), weights="none")))
    job = dataclasses.replace(job_of(tmp_path, shapes), cell=cell, teacher=tmp_path / "teacher.pt")
    status = train(job, tmp_path / "out").run(cell).status
    assert status["state"] == "failed" and "teacher.pt" in status["message"] and "trace" not in status


def test_an_image_that_cannot_be_decoded_is_one_line(shapes: Path, tmp_path: Path, table: str):
    """It is met in a process that loads images, whose errors torch hands on with their tracebacks."""
    shutil.copytree(shapes / "kd-shapes", tmp_path / "kd-shapes")
    path = tmp_path / "kd-shapes" / "val2017" / "0003.png"
    path.write_bytes(path.read_bytes()[:20])
    job = job_of(tmp_path, tmp_path)
    status = train(job, tmp_path / "out").run(job.cell).status
    assert status["state"] == "failed"
    assert status["message"] == f"{path} is no readable image (AssertionError); replace it"


def test_a_method_that_exits_fails_its_cell_and_a_full_disk_ends_the_run(
    shapes: Path, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
):
    plugin = tmp_path / "exits.py"
    plugin.write_text(
        "import sys\nfrom dataclasses import replace\nimport kd_methods\n"
        "from kd_methods.logit.student import Student\n"
        "@kd_methods.register\nclass Exits(Student):\n"
        "    card = replace(Student.card, name='test_exits')\n"
        "    def losses(self, *_):\n        sys.exit(0)\n"
    )
    job = job_of(tmp_path, shapes)
    with monkeypatch.context() as patch:
        patch.setitem(registry._classes, "test_exits", registry.get("student"))
        cell = make_cell(job.protocol, "", STUDENT, Distillation("test_exits"))
    store = Store(tmp_path / "out")
    where = store, job.protocol, None, CPU, lambda ref: None, lambda *_: None, print
    context = executor.Context(*where, data_root=job.data_root, plugin_files=(plugin,))
    executor.run([cell], context)
    assert store.run(cell).status["state"] == "failed" and store.run(cell).status["message"] == "SystemExit: 0"
    monkeypatch.setattr(executor, "_in_processes", lambda *_: ("disk", "nothing can be written"))
    with pytest.raises(DiskError, match="nothing can be written"):
        executor.run([cell], context)


def test_a_diverging_cell_says_which_term(shapes: Path, tmp_path: Path, table: str):
    optimizer = job_of(tmp_path, shapes).protocol.optimizer.model_copy(update={"lr": 1e30, "clip": 0.0})
    job = job_of(tmp_path, shapes, {"optimizer": optimizer})
    status = train(job, tmp_path / "out").run(job.cell).status
    assert status["state"] == "diverged" and status["message"].startswith("loss term 'task' is ")


def test_the_cost_of_a_step(shapes: Path, tmp_path: Path, table: str):
    job = job_of(tmp_path, shapes)
    figures = executor.cost(job.cell, job.protocol, shapes, CPU)
    assert figures["images_per_second"] > 0 and figures["extra_train_params"] == 0
    assert figures["peak_memory_bytes"] > 10**7


# --- data, plans, bad input -------------------------------------------------------------------------------------------


def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a kill cut off, or a flipped bit changed, is set aside; older ones go; what cannot be read now stays."""
    from benchmarks.detection import runner as detection

    for number in (10, 20, 30, 100):
        torch.save({"state_dict": {"w": torch.full((100,), float(number))}}, tmp_path / f"iter_{number}.pth")
    changed, cut = tmp_path / "iter_30.pth", tmp_path / "iter_100.pth"
    content = changed.read_bytes()
    place = content.index(torch.full((100,), 30.0).numpy().tobytes())
    changed.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    cut.write_bytes(cut.read_bytes()[:-100])
    before = cut.read_bytes()

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        with pytest.raises(DiskError, match=r"cannot read .*iter_100.pth: Permission denied"):
            detection._last_checkpoint(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4

    assert detection._last_checkpoint(tmp_path) == tmp_path / "iter_20.pth"
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"iter_20.pth", "iter_30.pth.unreadable-1", "iter_100.pth.unreadable-1"}
    assert (tmp_path / "iter_100.pth.unreadable-1").read_bytes() == before
    assert detection._last_checkpoint(tmp_path) == tmp_path / "iter_20.pth"


def test_shapes_are_drawn_once_and_whole(shapes: Path):
    files = get_task("shapes").open(shapes, load_protocol("shapes-demo"), CPU)
    assert files.classes == ("disc", "square", "triangle") and len(files.train.paths) == files.train.count == 64
    assert set(files.train.labels) == {0, 1, 2}
    sides = files.train.boxes[:, 2]
    assert sides.min() < 32 < sides.max()  # small and medium objects


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "annotations" / "instances_val2017.json").unlink(), "instances_val2017.json is missing"),
        (lambda f: (f / "annotations" / "instances_val2017.json").write_text("{}"), "is not in COCO's format"),
        (lambda f: next((f / "train2017").iterdir()).unlink(), "lacks 1 of 64 images"),
    ],
)
def test_broken_folders_are_one_clear_line(shapes: Path, tmp_path: Path, change: Any, words: str):
    shutil.copytree(shapes / "kd-shapes", tmp_path / "kd-shapes")
    change(tmp_path / "kd-shapes")
    with pytest.raises(UserError, match=words):
        get_task("shapes").fingerprint(tmp_path, load_protocol("shapes-demo"))
    with pytest.raises(UserError, match=r"no data for task 'coco'.*cocodataset\.org.*--data-root"):
        get_task("coco").samples(tmp_path)


def test_plans_need_no_mmdetection(shapes: Path, tmp_path: Path):
    """Neither a plan nor other commands import it, and a run without it is one line."""
    code = f"""
import sys
from benchmarks.detection import detectors
detectors.available = lambda: False
from benchmarks.cli.main import main
table = ["table4", "--preset", "demo", "--data-root", {str(shapes)!r}, "--output", {str(tmp_path)!r}]
for command in (["list"], ["show", "method", "fgd"],
                [*table, "--dry-run"]):
    try:
        sys.argv[1:] = command
        main()
    except SystemExit:
        pass
assert not [name for name in sys.modules if name.split(".")[0] in ("mmdet", "mmengine", "mmcv")]
sys.argv[1:] = table
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "block_kd.fpn" in result.stderr and "6 cells to run on" in result.stderr, result.stderr
    assert result.returncode == 2 and "extra [detection]" in result.stderr.splitlines()[-1], result.stderr


def test_every_detection_table_has_its_settings_and_titles():
    for name in ("table4", "table4-dense"):
        loaded = load_table(name)
        for row in loaded.methods:
            for pair in loaded.pairs:
                registry.settings(row.method, dict(pair_settings(row.method, f"{pair.id}:coco.mAP", "coco-1x")))
    assert pair_settings("reviewkd.fpn", "r50-mv2:coco.APs", "coco-1x") == {"beta": 2.0}


def test_a_file_of_the_zoo_is_read_without_running_its_code(pair: Any, tmp_path: Path):
    """What OpenMMLab's checkpoints hold beside the weights: a log's history, numpy values, plain meta data."""
    import numpy as np
    from mmengine.logging import HistoryBuffer

    weights = pair[0].module.state_dict()
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {"meta": {"epoch": 12, "time": np.float64(1)}, "state_dict": weights, "message_hub": {"loss": history}}
    torch.save(content, tmp_path / "zoo.pth")
    assert load_weights(tmp_path / "zoo.pth").keys() == weights.keys()
    torch.save({"state_dict": weights, "meta": detectors.Recipe("", {})}, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match="no readable checkpoint"):
        load_weights(tmp_path / "foreign.pth")


def scored(files: Any, labels: np.ndarray | None = None) -> dict[str, float]:
    """The average precisions of what finds all that the validation set has, under its labels or others."""
    detectors.prepare()
    from benchmarks.detection.runner import average_precision

    metric, val = average_precision(files, Path("unused")), files.val
    corners = torch.from_numpy(np.concatenate([val.boxes[:, :2], val.boxes[:, :2] + val.boxes[:, 2:]], 1))
    for image, (width, height) in enumerate(val.sizes):
        own = torch.from_numpy((val.image == image) & ~val.crowd)
        found = {
            "bboxes": corners[own],
            "scores": torch.ones(int(own.sum())),
            "labels": torch.from_numpy(val.labels if labels is None else labels)[own],
        }
        metric.process({}, [{"img_id": image + 1, "ori_shape": (height, width), "pred_instances": found}])
    return metric.evaluate(len(val.sizes))


def test_mmdetection_has_the_suites_labels(shapes: Path, tmp_path: Path):
    """It would take them from the order in which a file lists its categories, and an object's id 0 for no match."""
    (tmp_path / "kd-shapes" / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (tmp_path / "kd-shapes" / split).symlink_to(shapes / "kd-shapes" / split)
        content = json.loads((shapes / "kd-shapes" / "annotations" / f"instances_{split}.json").read_text())
        for thing in content["annotations"]:
            thing["id"] -= 1
        content = {kind: entries[::-1] for kind, entries in content.items()}
        (tmp_path / "kd-shapes" / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    plain, turned = (get_task("shapes").open(root, load_protocol("shapes-demo"), CPU) for root in (shapes, tmp_path))
    wrong = plain.val.labels.copy()
    wrong[::3] = 0
    assert scored(turned) == scored(plain) and set(scored(turned).values()) == {1.0, -1.0}
    assert scored(turned, wrong) == scored(plain, wrong) and scored(turned, wrong)["coco/bbox_mAP"] < 0.9

    from benchmarks.detection.data import DetectionDataset

    read = DetectionDataset(turned.val, turned.classes, test_mode=True)
    found = [(i, one["bbox_label"]) for i in range(len(read)) for one in read.get_data_info(i)["instances"]]
    assert found == list(zip(plain.val.image.tolist(), plain.val.labels.tolist(), strict=True))


@pytest.mark.real_data
def test_ground_truth_scores_one(real_data: Path):
    files = get_task("coco").open(real_data / "coco" / "COCO_Tiny", load_protocol("coco-short"), CPU)
    values = scored(files)
    assert {values[f"coco/{key}"] for key in ("bbox_mAP", "bbox_mAP_50", "bbox_mAP_s", "bbox_mAP_l")} == {1.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TWO_STAGE, "student", *DENSE])
def test_the_loss_falls_over_fifty_iterations(name: str, shapes: Path, tmp_path: Path):
    """Compared are the means of the first and the last ten steps."""
    from benchmarks.detection import data as detection_data
    from benchmarks.detection import runner as detection
    from benchmarks.detection.executor import Job

    protocol = load_protocol("shapes-demo")
    values = dict(pair_settings(name, "", protocol.recipe))

    teacher, student = ("gfl_small_r18x2", "gfl_small_r18x4") if name in DENSE else (TEACHER, STUDENT)
    ref = TeacherRef(teacher, (), (), weights="none")
    cell = make_cell(protocol, "shapes", student, Distillation(name, ref, values))
    job = Job(cell, protocol, shapes, "cpu", torch.get_num_threads(), (), tmp_path)
    runner, _ = detection.set_up(job, None, tmp_path)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    batches = iter(runner.train_dataloader)
    history: list[dict[str, float]] = []
    runner.model.train()
    for step in range(50):
        detection_data.seed_all(step)
        found = runner.model.train_step(next(batches), optim_wrapper=runner.optim_wrapper)
        history.append({key: float(value) for key, value in found.items()})
    # GFL weighs boxes by class scores, which begin near zero: its own loss rises at first.
    start = 10 if name == "ld" else 0
    first, last = (sum(record["loss"] for record in part) / 10 for part in (history[start : start + 10], history[-10:]))
    assert last < first, (first, last)
