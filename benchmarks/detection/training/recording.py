"""What happens to a cell, in its run's directory and as messages to the parent process."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ...common import devices, environment
from ...common.events import EpochEnded, EpochRecord, Event, Said, Stepped
from ...common.process.children import Send
from ...common.process.together import Answer
from ...common.seeding import derive, seed_all
from ...store.runs import OTHER_BITS
from ...training.failures import Diverged, Interrupted
from ...training.loop import CHECK_EVERY
from ..tasks.coco import METRICS
from .job import DetectionJob


class Records(Hook):
    """Carries what happens over into the run's directory and to the parent; keeps each iteration's random numbers.

    Of several processes all know the same, and the first one reports it.
    """

    priority = "LOW"

    def __init__(self, job: DetectionJob, send: Send) -> None:
        self.job, self.send = job, send
        self.state: dict[str, Any] = {"records": [], "sums": {}, "counted": 0, "seconds": 0.0}
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    @property
    def records(self) -> list[EpochRecord]:
        return self.state["records"]

    def before_train(self, runner: Runner) -> None:
        """Here a checkpoint has been read, if there is one."""
        if not self.job.rank:
            place = divmod(runner.iter, self.job.detection.iterations)
            if change := self.job.run.add_environment(_environment(self.job), place[0] + 1, place[1]):
                report(self.send, Said(f"{self.job.cell.label}  {change}, {OTHER_BITS}"))
            self.job.run.set_status("running", epoch=len(self.records), epochs=self.job.protocol.epochs)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.started = time.perf_counter()
        self.state["lr"] = runner.optim_wrapper.get_lr()["lr"][0]  # after the step it is that of the next one
        rank = [self.job.rank] if self.job.rank else []
        seed_all(derive(self.job.cell.seed, "step", runner.iter, *rank))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        assert outputs is not None
        sums, done = self.state["sums"], runner.iter + 1
        names = [name for name in outputs if name.startswith("loss_")]
        values = [outputs[name].detach().double().cpu() for name in names]
        means = torch.stack([*values, torch.tensor(self.asked, dtype=torch.float64)])
        dist.all_reduce(means, op="mean")  # so all stop after the same iteration
        for name, value in zip(names, means[:-1], strict=True):
            sums[name[5:]] = sums.get(name[5:], 0) + value
        self.state["counted"] += 1
        self.state["seconds"] += time.perf_counter() - self.started
        if done % CHECK_EVERY == 0 or done % self.job.detection.iterations == 0:
            for name, total in sums.items():
                if not math.isfinite(float(total)):
                    raise Diverged(f"loss term '{name}' is {float(total)} in iteration {done}")
        if not self.job.rank:
            epoch, step = divmod(runner.iter, self.job.detection.iterations)
            report(self.send, Stepped(self.job.cell.key, self.job.cell.label, (epoch + 1, step + 1)))
        if means[-1]:
            runner.save_checkpoint(runner.work_dir, f"iter_{done}.pth", by_epoch=False)
            raise Interrupted

    def before_val_epoch(self, runner: Runner) -> None:
        """All evaluate with the statistics of the first process, which are the ones that are kept."""
        for buffer in runner.model.buffers():
            dist.broadcast(buffer)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        assert metrics is not None
        epoch, state = runner.iter // self.job.detection.iterations, self.state
        record: EpochRecord = {
            "epoch": epoch,
            "phase": "",
            "lr": state["lr"],
            "metrics": percentages(metrics),
            "probes": {},
            "losses": {name: float(total) / state["counted"] for name, total in state["sums"].items()},
            "seconds": round(state["seconds"], 3),
        }
        if watched := unwrapped(runner).method.watched():
            record["watched"] = dict(watched)
        self.records.append(record)
        state.update(sums={}, counted=0, seconds=0.0)
        if self.job.rank:
            return
        self.job.run.set_metrics(self.records)
        self.job.run.set_status("running", epoch=epoch, epochs=self.job.protocol.epochs)
        report(self.send, EpochEnded(self.job.cell.key, self.job.cell.label, self.records[-1]))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["kd"] = {**self.state, "records": list(self.records), "cell": self.job.cell.key}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.state = checkpoint["kd"]


def unwrapped(runner: Runner) -> Any:
    """The cell's model without what shares its batches among processes."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def percentages(evaluated: Mapping[str, float]) -> dict[str, float]:
    """A cell's metrics from what mmdetection's evaluation gives."""
    # Without a single detection it gives no figures at all.
    fractions = {name: evaluated.get(f"coco/{key}", 0.0) for name, key in METRICS.items()}
    # COCO says -1 where there is no object of that size.
    return {name: round(100 * value, 4) for name, value in fractions.items() if value >= 0}


def _environment(job: DetectionJob) -> dict[str, Any]:
    from importlib import metadata

    facts = environment.describe(devices.device(job.device))
    names = ("mmdet", "mmengine", "mmcv-lite", "pycocotools")
    return {**facts, "versions": {**facts["versions"], **{name: metadata.version(name) for name in names}}}


def report(send: Send, message: Event | Answer) -> None:
    """Send a message to the parent. Where that was killed there is nobody to work for, and it is no cell's failure."""
    try:
        send(message)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)
