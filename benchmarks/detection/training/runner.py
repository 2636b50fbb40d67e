"""A cell of detection as mmengine's Runner trains, evaluates and resumes it.

Importing this module imports mmdetection; ``detection.networks.configurations.prepare`` has to be called before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from mmdet.evaluation import CocoMetric
from mmdet.evaluation.metrics import coco_metric
from mmengine.evaluator import Evaluator
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator

from kd_methods.contract import DataInfo, Progress
from kd_methods.errors import Changed, UserError

from ...common import devices, plugins
from ...common.process.children import Send
from ...common.seeding import derive, seed_all
from ...common.weights import fit, load_weights
from ...config.protocol import Protocol
from ...config.recipe import Detection
from ...tasks import get_task
from ...training.assembly import Assembly, begin
from ...training.failures import Refused
from ...training.loop import protocol_progress
from ...training.precision import autocast
from ..networks import detectors
from ..tasks.coco import DetectionFiles
from . import data as detection_data
from .checkpoints import last_checkpoint
from .detector_distiller import DetectorDistiller
from .job import DetectionJob
from .recording import Records

SAVE_EVERY = 1000
"""Iterations between two checkpoints within an epoch."""


@LOOPS.register_module()
class ResumableLoop(IterBasedTrainLoop):
    """mmengine's loop, which after a stop goes on with the next batch without loading those before it."""

    def run(self) -> Any:
        if done := self._iter:
            self.dataloader.batch_sampler.start = done
            # The loop takes as many batches as there were iterations, to get to its place.
            self.dataloader_iterator = chain(repeat(None, done), _InfiniteDataloaderIterator(self.dataloader))
            if done % self.val_interval == 0:  # stopped between the checkpoint of an epoch and its evaluation
                self.runner.val_loop.run()
        return super().run()


def build(job: DetectionJob, classes: int) -> tuple[detectors.Detector, detectors.Detector | None]:
    """Student and frozen teacher of a cell; the student's weights are a function of the seed."""
    cell, pretrained = job.cell, job.detection.pretrained
    teacher = None
    if cell.teacher:
        teacher = detectors.build(cell.teacher.network, classes, pretrained=False)
        if job.teacher:  # where only the cost is asked for there is none
            fit(load_weights(job.teacher, cell.teacher.weights), teacher.module, str(job.teacher))
    seed_all(derive(cell.seed, "student"))
    student = detectors.build(cell.student, classes, pretrained)
    try:
        begin(cell, student, teacher)
    except Changed:
        raise
    except UserError as error:
        raise Refused(str(error)) from None
    return student, teacher and teacher.requires_grad_(False).eval()


def distiller(
    job: DetectionJob,
    student: detectors.Detector,
    teacher: detectors.Detector | None,
    samples: int,
    progress: Callable[[], Progress],
) -> DetectorDistiller:
    """The student with its teacher and method, whose own parameters are a function of the seed.

    Raises:
        Refused: the method is not for them.
    """
    cell, protocol, device = job.cell, job.protocol, devices.device(job.device)
    seed_all(derive(cell.seed, "method"))
    try:
        assembly = Assembly(cell, student, teacher, DataInfo(samples, student.classes + 1))
    except UserError as error:
        raise Refused(str(error)) from None
    model = DetectorDistiller(assembly, teacher, progress, lambda: autocast(protocol, device))
    if protocol.part_size < (least := model.method.needs.min_batch):
        raise Refused(f"method '{cell.method}' needs {least} images at once, and each process has {protocol.part_size}")
    return model


def set_up(job: DetectionJob, send: Send, folder: Path) -> tuple[Runner, Records]:
    """The cell's Runner, at its last checkpoint if there is one."""
    torch.set_num_threads(job.threads)
    plugins.load_again(job.plugin_files, job.cell.plugins)
    protocol, cell, detection = job.protocol, job.cell, job.detection
    device = devices.device(job.device)
    if job.rendezvous:
        _meet(job, device)
    files: DetectionFiles = get_task(protocol.task).open(job.data_root, protocol, torch.device("cpu"))
    if files.digest != cell.data:
        raise Changed(f"the data of task {protocol.task} in {job.data_root} have changed since the run was planned")
    student, teacher = build(job, len(files.classes))
    hook = Records(job, send)
    total = protocol.epochs * detection.iterations
    runner: Runner

    progress = lambda: protocol_progress(protocol, runner.iter // detection.iterations + 1)  # noqa: E731
    model = distiller(job, student, teacher, files.train.count, progress)
    optimizer = cell.under(protocol).optimizer
    checkpoint = last_checkpoint(folder, cell.key, model)
    runner = Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=detection_data.training(files, job),
        train_cfg={"type": "ResumableLoop", "max_iters": total, "val_interval": detection.iterations},
        optim_wrapper={
            **_wrapper(protocol),
            "optimizer": {
                "type": "SGD",
                **optimizer.model_dump(include={"lr", "momentum", "weight_decay", "nesterov"}),
            },
            "clip_grad": {"max_norm": optimizer.clip} if optimizer.clip else None,
        },
        param_scheduler=_schedule(protocol, detection),
        val_dataloader=detection_data.validation(files.val, files.classes, job),
        val_cfg={"type": "ValLoop"},
        val_evaluator=Evaluator([average_precision(files, folder / "collected")]),
        default_hooks={
            "checkpoint": {
                "type": "CheckpointHook",
                "interval": min(detection.iterations, SAVE_EVERY),
                "by_epoch": False,
                "max_keep_ckpts": 2,
            },
            "logger": {"type": "LoggerHook", "interval": min(50, detection.iterations)},
        },
        custom_hooks=[hook],
        log_processor={"by_epoch": False},
        randomness={"seed": derive(cell.seed, "runner") % 2**32},
        resume=checkpoint is not None,
        load_from=str(checkpoint) if checkpoint else None,
        experiment_name=f"{cell.key[:16]}-{time.time_ns()}",
        default_scope="mmdet",
        launcher="pytorch" if job.rendezvous else "none",
        cfg={"model_wrapper_cfg": _parallel(device)} if job.rendezvous else {},
    )
    model.to(device)
    return runner, hook


def _meet(job: DetectionJob, device: torch.device) -> None:
    """Join the cell's other processes; mmengine, which would do it for GPUs only, takes the group that it finds."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ["LOCAL_RANK"] = str(job.rank)
    backend = "nccl" if device.type == "cuda" else "gloo"
    place = f"file://{job.rendezvous}"
    torch.distributed.init_process_group(backend, place, rank=job.rank, world_size=job.protocol.processes)


def _parallel(device: torch.device) -> dict[str, Any]:
    """How the model is shared. A method may leave parts of the student without a gradient in some step."""
    return {
        "type": "MMDistributedDataParallel",
        "device_ids": [device.index] if device.type == "cuda" else None,
        "broadcast_buffers": False,
        "find_unused_parameters": True,
    }


def _wrapper(protocol: Protocol) -> dict[str, Any]:
    """The kind of optimiser wrapper: of the precisions, fp16 needs its loss scaled."""
    return {"type": "AmpOptimWrapper", "dtype": "float16"} if protocol.precision == "fp16" else {"type": "OptimWrapper"}


def average_precision(files: DetectionFiles, collected: Path) -> CocoMetric:
    """On the validation set; ``collected`` is where several processes bring their results together."""
    # Else every figure is rounded to a tenth of a point, where published ones and standard deviations have two digits.
    vars(coco_metric)["round"] = lambda value, digits: value
    metric = CocoMetric(metric="bbox")
    metric._coco_api = detection_data.ground_truth(
        files.val, files.classes
    )  # else it reads labels out of a file by itself
    metric.dataset_meta = {"classes": files.classes}
    metric.collect_dir = str(collected)  # else a folder where the command was given
    return metric


def _schedule(protocol: Protocol, detection: Detection) -> list[dict[str, Any]]:
    milestones = protocol.milestones_in(detection.iterations)
    steps: list[dict[str, Any]] = [
        {"type": "MultiStepLR", "by_epoch": False, "milestones": milestones, "gamma": protocol.decay}
    ]
    if detection.warmup:
        rise = {"type": "LinearLR", "by_epoch": False, "start_factor": 1e-3, "begin": 0, "end": detection.warmup}
        steps.insert(0, rise)
    return steps
