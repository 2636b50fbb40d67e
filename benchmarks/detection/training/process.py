"""Functions that run in a process of a cell's own: train it, measure what its steps cost, evaluate a file.

Importing this module imports mmdetection; ``detection.networks.configurations.prepare`` has to be called before.
"""

from __future__ import annotations

import io
import itertools
import os
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner

from kd_methods.errors import Changed, DiskError, UserError

from ...common import devices, plugins
from ...common.process.children import Send
from ...common.process.together import Answer, BesideFailed
from ...common.seeding import seed_all
from ...common.weights import fit, load_weights
from ...cost.measuring import TIMED, WARM_UP, median_seconds, peak_memory
from ...networks import count
from ...report.model import CostEntry
from ...tasks import get_task
from ...training.failures import Refused, line, marked, of_cell
from ...training.finished import finish, on_cpu
from ...training.precision import autocast
from ..networks import detectors
from ..tasks.coco import DetectionFiles
from . import data as detection_data
from .checkpoints import ALLOWED
from .job import DetectionJob, EvaluationJob
from .recording import percentages, report, unwrapped
from .runner import average_precision, set_up


def work(send: Send, job: DetectionJob) -> None:
    """Train a cell; the parent gets its events, and as the answer its run's state in the end, or ``held``.

    Where nothing could be written, or what was planned has changed, the answer is the error.

    The run's lock is held by this process and those that load its images, which end with it.
    """
    if job.rank:
        _assist(send, job)
        return
    run = job.run
    with run.lock() as mine:
        if not mine:
            report(send, Answer("held"))
        elif run.ended:
            report(send, Answer(run.state))
        else:
            report(send, Answer(_train(job, send, _quiet(run / "mmengine", "console.log"))))


def _assist(send: Send, job: DetectionJob) -> None:
    """Train beside the cell's first process, which reports for both; errors are sent to the parent from here."""
    folder = _quiet(job.run / "mmengine", f"console-{job.rank}.log")
    try:
        runner, _ = set_up(job, send, folder)
        _run(runner)
    except BaseException as error:
        failure = of_cell(error, alone=True)
        if isinstance(error, Changed):
            return  # the first process finds the same, and answers
        if isinstance(error, DiskError) or (failure and failure.state == "failed"):
            traceback.print_exc()
            send(BesideFailed(line(error)))


def _quiet(folder: Path, name: str) -> Path:
    """Let this process, and what of it is not Python, write into a file of the folder instead of the terminal."""
    folder.mkdir(exist_ok=True)
    with (folder / name).open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    return folder


def _run(runner: Runner) -> None:
    with torch.serialization.safe_globals(ALLOWED):  # mmengine's torch.load knows no list of its own
        runner.train()


def _train(job: DetectionJob, send: Send, folder: Path) -> str | UserError:
    """Train the cell; the state in which its run is then, or the error where that concerns all cells."""
    run = job.run
    try:
        runner, hook = set_up(job, send, folder)
        _run(runner)
        model = unwrapped(runner)
        finish(run, on_cpu(model.student), hook.records, job.protocol, model.method.remarks())
    except (DiskError, Changed) as error:
        return type(error)(line(error))
    except BaseException as error:
        if failure := marked(run, error, alone=True, epoch=len(run.metrics) + 1):
            return failure.state
        run.set_status("interrupted", epoch=len(run.metrics), epochs=job.protocol.epochs)
        return "interrupted"
    return "done"


def evaluate(send: Send, job: EvaluationJob) -> None:
    """The metrics of the detector in the job's file in percent, or what went wrong, as the answer to the parent."""
    with redirect_stdout(io.StringIO()):  # of its steps pycocotools tells as it goes
        answer = _answer(lambda: _evaluated(job))
    send(answer)


def _answer(asked: Callable[[], Any]) -> Answer:
    """What a function gives, or what went wrong in it, for the parent to raise."""
    try:
        return Answer(asked())
    except Refused as error:
        return Answer(error)
    except Exception as error:
        return Answer(UserError(line(error)))


def _evaluated(job: EvaluationJob) -> dict[str, float]:
    torch.set_num_threads(job.threads)
    plugins.load_again(job.plugin_files, job.cell.plugins)
    device = devices.device(job.device)
    files: DetectionFiles = get_task(job.protocol.task).open(job.data_root, job.protocol, torch.device("cpu"))
    network = detectors.build(job.cell.student, len(files.classes), pretrained=False)
    fit(load_weights(job.file), network.module, job.file.name)
    model = network.module.to(device).eval()
    metric = average_precision(files, job.path)
    loader = detection_data.validation(files.val, files.classes, job)
    with torch.no_grad(), autocast(job.protocol, device):
        for batch in loader:
            metric.process(batch, [sample.to_dict() for sample in model.val_step(batch)])
    return percentages(metric.evaluate(len(loader)))


def cost(send: Send, job: DetectionJob) -> None:
    """What a step costs, or what went wrong, as the answer to the parent."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        answer = _answer(lambda: _figures(job))
    send(answer)


def losses(send: Send, job: DetectionJob) -> None:
    """The losses of the first two steps, and those with other random numbers drawn in them, as the answer."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        answer = _answer(lambda: [_losses(job, stream) for stream in (0, 1)])
    send(answer)


def _losses(job: DetectionJob, stream: int) -> list[float]:
    _, step = _steps(job)
    seed_all(stream)
    return [float(step()["loss"]) for _ in range(2)]


def _steps(job: DetectionJob) -> tuple[Any, Callable[[], dict[str, Any]]]:
    """The cell's model, and what makes a training step of it and returns its losses."""
    runner, hook = set_up(job, lambda message: None, job.path)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    model: Any = runner.model.train()
    batches, numbers = iter(runner.train_dataloader), itertools.count()

    def step() -> dict[str, Any]:
        hook.before_train_iter(runner, next(numbers))
        made: dict[str, Any] = model.train_step(next(batches), optim_wrapper=runner.optim_wrapper)
        return made

    return model, step


def _figures(job: DetectionJob) -> CostEntry:
    device = devices.device(job.device)
    with peak_memory(device) as memory:
        model, step = _steps(job)
        seconds = median_seconds(step, device, WARM_UP, TIMED)
    images = job.protocol.part_size
    plain, trained = count(model.student.parameters()), count(model.parameters())
    return CostEntry(
        images_per_second=images / seconds,
        peak_memory_bytes=memory["bytes"],
        memory_kind=memory["kind"],
        reserved_memory_bytes=memory["reserved"],
        memory_by_part={},
        extra_train_params=trained - plain,
        extra_inference_params=0,
        batch_size=images,
        device=job.device,
        steps=TIMED,
        first_phases=False,
    )
