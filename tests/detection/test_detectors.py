"""Detectors as methods see them: a step of every method, the detector's own losses, regions and places."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.detection import DENSE, STUDENT, TWO_STAGE, batch, needs_mmdetection, overlap
from helpers.devices import Waits
from torch import nn

import kd_methods
from benchmarks import networks
from benchmarks.common.weights import load_weights
from benchmarks.detection.networks import configurations
from kd_methods.contract import DataInfo, Progress, Pyramid
from kd_methods.errors import UserError

needs_mmdetection()


@pytest.mark.parametrize("name", TWO_STAGE)
def test_a_step_of_every_method(pair: Any, name: str):
    student, teacher = pair
    torch.manual_seed(0)
    method = kd_methods.build(name, student, teacher, DataInfo(64, 4)).train()
    before = {key: value.clone() for key, value in teacher.module.state_dict().items()}
    given = batch(student)
    student.zero_grad(), student.train()
    student_pass = student.training_pass(given["inputs"], given["data_samples"], method.needs.student_units)
    teacher_outputs = teacher.teacher_pass(given["inputs"], student_pass, logits=True)
    losses = method.losses(student_pass.outputs, teacher_outputs, student_pass.batch, Progress(30, 240))
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
        ("label_smoothing", "is made for one label of every input, not for detection"),
        ("tf_kd.reg", "is made for one label of every input, not for detection"),
        ("tf_kd.reg+kd", "is made for one label of every input, not for detection"),
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


def test_localization_distillation_is_as_strong_as_in_mmdetection(dense_pair: Any):
    """By its own head's whole computation, in which some losses are divided by the weights of places and some not."""
    from mmdet.models.dense_heads import LDHead
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss

    student, teacher = dense_pair
    given = batch(student)
    images, samples = given["inputs"], given["data_samples"]
    student_pass = student.eval().training_pass(images, samples, ("dense",))
    answers = teacher.teacher_pass(images, student_pass, logits=False)
    method = kd_methods.build("ld", student, teacher, DataInfo(64, 4))
    ours = method.losses(student_pass.outputs, answers, student_pass.batch, Progress(1, 1)).distill["ld"]
    head = copy.copy(student.module.bbox_head)
    head.__class__ = LDHead
    head.loss_ld = KnowledgeDistillationKLDivLoss(loss_weight=0.25, T=10)
    scores, boxes = head(student.module.extract_feat(images))
    _, soft = teacher.module.bbox_head(teacher.module.extract_feat(images))
    objects, metas = [sample.gt_instances for sample in samples], [sample.metainfo for sample in samples]
    theirs = sum(head.loss_by_feat(scores, boxes, objects, soft_targets=soft, batch_img_metas=metas)["loss_ld"])
    assert float(ours.detach()) == pytest.approx(2 / len(images) * float(theirs.detach()), rel=1e-4)


@pytest.mark.parametrize("name", [*TWO_STAGE, *DENSE])
def test_the_host_waits_where_the_card_says_why(pair: Any, dense_pair: Any, name: str):
    """For the method's own terms, forward and backward; the detector's losses wait for the device anyhow."""
    student, teacher = dense_pair if name in DENSE else pair
    method = kd_methods.build(name, student, teacher, DataInfo(64, 4)).train()
    given = batch(student)
    student_pass = student.train().training_pass(given["inputs"], given["data_samples"], method.needs.student_units)
    answers = teacher.teacher_pass(given["inputs"], student_pass, logits="logits" in method.needs.teacher)
    taskless = replace(student_pass.batch, task_loss=lambda logits, labels: torch.zeros((), requires_grad=True))
    with Waits() as waits:
        method.losses(student_pass.outputs, answers, taskless, Progress(30, 240)).total().backward()
    assert bool(+waits.counts) == bool(kd_methods.card(name).waits), dict(waits.counts)


@pytest.mark.parametrize("name", ["fgd", "mgd.fpn"])
def test_levels_that_the_neck_convolves_are_matched(pair: Any, dense_pair: Any, name: str):
    """A two-stage detector's coarsest level is every second place of the one before: the authors leave it out."""
    for detectors, count in ((pair, 4), (dense_pair, 5)):
        method: Any = kd_methods.build(name, *detectors, DataInfo(64, 4))
        assert len(method.align) == count == len(detectors[0].module.neck.fpn_convs)


@pytest.mark.parametrize("name", DENSE)
def test_a_step_of_every_method_on_dense_answers(dense_pair: Any, name: str):
    student, teacher = dense_pair
    before = {key: value.clone() for key, value in teacher.module.state_dict().items()}
    given = batch(student)
    student.zero_grad(), student.train()
    student_pass = student.training_pass(given["inputs"], given["data_samples"], ("dense", "anchor_relations"))
    dense, teacher_outputs = (
        student_pass.outputs["dense"],
        teacher.teacher_pass(given["inputs"], student_pass, logits=False),
    )
    assert dense.edges.shape == (len(dense.level), 4, 17) and dense.classes.shape == (len(dense.level), 3)
    assert dense.positive.any() and not (dense.positive & (student_pass.outputs["anchor_relations"].valuable > 0)).all()
    losses = kd_methods.build(name, student, teacher, DataInfo(64, 4)).losses(
        student_pass.outputs, teacher_outputs, student_pass.batch, Progress(1, 1)
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


def test_inheriting_takes_neck_and_heads(pair: Any):
    student, teacher = networks.build_network(STUDENT, 3), pair[1]
    networks.init_from(STUDENT, student, teacher, "heads")
    ours, theirs = student.module.state_dict(), teacher.module.state_dict()
    heads = [key for key in ours if key.startswith(("rpn_head", "roi_head", "neck.fpn"))]
    assert heads and all(torch.equal(ours[key], theirs[key]) for key in heads)
    lateral = "neck.lateral_convs.0.conv.weight"
    assert ours[lateral].shape != theirs[lateral].shape  # the backbone's widths differ there
    with pytest.raises(UserError, match="detectors from heads"):
        networks.init_from(STUDENT, student, teacher, "first")


def test_a_configuration_of_mmdet_by_name_or_file(tmp_path: Path):
    path = configurations.configuration_file("mmdet::retinanet_r18_fpn_1x_coco")
    assert configurations.configuration_file(str(path)) == path
    for name, words in {
        "mmdet::retinanet_r18_fpn_2x_coco": "configuration of mmdet.*retinanet_r18_fpn_1x_coco",
        "none.py": "detector",
        "faster_rcnn_r19": "faster_rcnn_r1",
    }.items():
        with pytest.raises(UserError, match=words):
            networks.check(name)


def test_a_file_of_the_zoo_is_read_without_running_its_code(pair: Any, tmp_path: Path):
    """What OpenMMLab's checkpoints hold beside the weights: a log's history, numpy values, plain meta data."""
    from mmengine.logging import HistoryBuffer

    weights = pair[0].module.state_dict()
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {"meta": {"epoch": 12, "time": np.float64(1)}, "state_dict": weights, "message_hub": {"loss": history}}
    torch.save(content, tmp_path / "zoo.pth")
    assert load_weights(tmp_path / "zoo.pth").keys() == weights.keys()
    torch.save({"state_dict": weights, "meta": configurations.Recipe("", {})}, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match="no readable checkpoint"):
        load_weights(tmp_path / "foreign.pth")


@pytest.mark.parametrize("name", [STUDENT, "faster_rcnn_mobilenetv2", "gfl_small_r18x4", "retinanet_r18"])
def test_a_detector_goes_on_from_the_maps_of_its_backbone(name: str):
    """Whatever stages are given, its heads say what they say of the image."""
    detector = networks.build_network(name, 3).eval()
    trunk = detector.layout.trunk
    assert trunk == ("c2", "c3", "c4", "c5") and detector.shape("c3")[1:] == (16, 16)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps, regions = detector.module.backbone(images), torch.tensor([[0.0, 4, 6, 30, 34], [1, 20, 10, 60, 50]])
        pyramid = Pyramid(detector._read(detector.module.extract_feat(images)), regions)
        expected = detector.resume("pyramid", pyramid)
        for i, unit in enumerate(trunk, 1):
            heads = detector.resume(unit, Pyramid(tuple(maps[:i]), regions))
            torch.testing.assert_close(heads, expected)
    with pytest.raises(UserError, match="resumed to its end"):
        detector.resume("c9", pyramid)


def test_stones_replace_a_detectors_backbone_stage_by_stage(pair: Any):
    """A student that is its own teacher, with connectors that change nothing: every stone is the teacher."""
    _, teacher = pair
    method = kd_methods.build("block_kd.backbone", teacher, teacher, DataInfo(64, 4)).eval()
    for connector in method.connectors:
        nn.init.dirac_(connector[0].weight)
    given = batch(teacher)
    passed = teacher.training_pass(given["inputs"], given["data_samples"], method.needs.student_units)
    outputs = passed.outputs
    stones = method.stones(outputs)
    assert len(stones) == 4 and method.weights == [0.125, 0.25, 0.5, 1.0]
    for stone in stones:
        torch.testing.assert_close(stone.logits, outputs.logits, rtol=1e-3, atol=1e-3)
    losses = method.losses(outputs, outputs, passed.batch, Progress(1, 12))
    assert all(abs(float(term.detach())) < 1e-4 for term in losses.distill.values())
    task_loss = sum(value for key, value in passed.terms.items() if key in ("loss_cls", "loss_bbox"))
    torch.testing.assert_close(losses.task["stones_task"], 1.875 * task_loss, rtol=1e-3, atol=1e-3)
    few = kd_methods.build("block_kd.backbone", teacher, teacher, DataInfo(64, 4), active_stones=(1, -1))
    assert few.active == [1, 4] and len(few.connectors) == 4
    for stones, message in (((5,), "no stone 5; this pair has stones 1 to 4"), ((), "at least 1 of the stones 1 to 4")):
        with pytest.raises(UserError, match=message):
            kd_methods.build("block_kd.backbone", teacher, teacher, DataInfo(64, 4), active_stones=stones)


@pytest.mark.parametrize("name", ["gfl_small_r18x{}", "retinanet_r18"])
def test_a_step_of_block_kd_on_one_stage_detectors(name: str):
    torch.manual_seed(0)
    teacher = networks.build_network(name.format(2), 3).requires_grad_(False).eval()
    student = networks.build_network(name.format(4), 3).train()
    method = kd_methods.build("block_kd.dense", student, teacher, DataInfo(64, 4)).train()
    given, before = batch(student), {key: value.clone() for key, value in teacher.module.state_dict().items()}
    passed = student.training_pass(given["inputs"], given["data_samples"], method.needs.student_units)
    teacher_outputs = teacher.teacher_pass(given["inputs"], passed, logits=False)
    losses = method.losses(passed.outputs, teacher_outputs, passed.batch, Progress(1, 12))
    torch.testing.assert_close(passed.batch.loss(passed.outputs["heads"]), losses.task["task"], rtol=1e-4, atol=1e-4)
    ours, theirs = (
        torch.cat([x.permute(0, 2, 3, 1).reshape(-1, 3) for x in o["heads"].scores])
        for o in (passed.outputs, teacher_outputs)
    )
    p, q = ours.sigmoid(), theirs.sigmoid()
    entropy = F.binary_cross_entropy(p, q, reduction="none") * (p - q).abs()
    torch.testing.assert_close(losses.distill["kd"], entropy.sum() / q.amax(1).sum().clamp(min=1), rtol=1e-3, atol=1e-5)
    losses.total().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    assert all(p.grad is not None for p in student.module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.module.state_dict().items())


def test_block_kd_says_which_of_its_forms_a_detector_has(pair: Any):
    with pytest.raises(UserError, match="needs one-stage detectors; use"):
        kd_methods.build("block_kd.dense", *pair, DataInfo(64, 4))
    dense = networks.build_network("gfl_small_r18x4", 3)
    with pytest.raises(UserError, match="sigmoids"):
        kd_methods.build("block_kd.backbone", dense, dense, DataInfo(64, 4))
    with pytest.raises(UserError, match="equally many anchors"):
        kd_methods.build("block_kd.dense", dense, networks.build_network("retinanet_r18", 3), DataInfo(64, 4))
