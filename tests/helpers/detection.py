"""What the tests of detection share: methods by what they read, a batch of images, a tiny table, jobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.watchers import CellEvent, ForwardingWatcher
from torch import Tensor

import kd_methods
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.detection import engine
from benchmarks.detection.networks import configurations, detectors
from benchmarks.detection.training.job import DetectionJob
from benchmarks.store.make_cell import student_cell
from benchmarks.store.runs import Store
from benchmarks.tasks import get_task
from kd_methods import registry

TEACHER, STUDENT = "faster_rcnn_small_r18x2", "faster_rcnn_small_r18x4"
CPU = torch.device("cpu")
DETECTION = [name for name in kd_methods.available() if kd_methods.card(name).modality == "detection"]
REGIONS = ["kd", "dkd", "dist", "nkd", "ttm", "wttm", "wsld", "ctkd"]
ON_HEADS = ("block_kd.dense",)
"""Methods for one-stage detectors whatever their heads."""
DENSE = [name for name in DETECTION if "dense" in registry.get(name).needs.student_units]
TWO_STAGE = [*(name for name in DETECTION if name not in (*DENSE, *ON_HEADS)), *REGIONS, "reviewkd.fpn+dkd", "kd@ls"]
PROTOCOL = """
extends: shapes-demo
teachers_from: ""
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


def needs_mmdetection() -> None:
    """Skip the module that calls this where the extra [detection] is missing; else make it ready to be imported."""
    if not configurations.available():
        pytest.skip("the extra [detection] is not installed", allow_module_level=True)
    configurations.prepare()


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


def job_of(path: Path, shapes: Path, update: dict[str, Any] | None = None, **changes: Any) -> DetectionJob:
    """A student's job under the tiny protocol with some changes."""
    protocol = load_protocol(str(path / "tiny.yaml")).changed(**changes).model_copy(update=update)
    cell = student_cell(STUDENT, protocol, get_task(protocol.task).fingerprint(shapes, protocol), {})
    return DetectionJob(cell, protocol, shapes, "cpu", 1, (), path / "job")


def train(
    job: DetectionJob,
    root: Path,
    stopping: Callable[[], bool] = lambda: False,
    report: Callable[[CellEvent], None] = lambda event: None,
) -> Store:
    """Train a job's cell as the driver does; the store."""
    store = Store(root)
    place = Workspace(CPU, job.data_root, output=root)
    context = engine.Context(place, job.protocol, None, lambda ref: job.teacher, ForwardingWatcher(report), stopping)
    engine.run([job.cell], context)
    return store


def overlap(a: Tensor, b: Tensor, offset: int) -> float:
    width = max(0.0, float(min(a[2], b[2]) - max(a[0], b[0])) + offset)
    height = max(0.0, float(min(a[3], b[3]) - max(a[1], b[1])) + offset)
    size = lambda c: float(c[2] - c[0] + offset) * float(c[3] - c[1] + offset)  # noqa: E731
    return width * height / (size(a) + size(b) - width * height)
