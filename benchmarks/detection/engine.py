"""Runs cells of detection one after another, each in a process of its own, where mmengine trains it.

Where a protocol shares its batches, a cell has several processes, which mmengine's Runner takes as those of its
launcher ``pytorch``. Nothing of mmdetection is imported in this process.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_methods.errors import DiskError, UserError

from ..common import environment
from ..common.process import children
from ..common.workspace import Workspace
from ..config.protocol import Protocol
from ..driver.engines.engine import Engine, Evaluate
from ..driver.engines.local import Context, until_free
from ..driver.execution.relay import Followed
from ..store.cell import Cell
from ..teachers.zoo import Teacher, Zoo
from ..training.failures import Interrupted, Refused
from .networks.configurations import check_installed, prepare
from .training.job import DetectionJob


def run(cells: Sequence[Cell], context: Context) -> None:
    """Compute every cell that the store does not have. One that another process holds is waited for.

    Raises:
        Interrupted: the user asked to stop.
        UserError: the extra [detection] is missing, or a GPU that the protocol needs.
    """
    check_installed()
    wanted, present = context.protocol.processes, torch.cuda.device_count() - (context.workspace.device.index or 0)
    if context.workspace.device.type == "cuda" and wanted > 1 and wanted > present:
        raise UserError(f"{wanted} processes need a GPU each, and there are {present}: --processes {present}")
    until_free(cells, context, lambda waiting: [cell for cell in waiting if not _one(cell, context)])


def _one(cell: Cell, context: Context) -> bool:
    """Train a cell; False if another process holds it."""
    run = context.store.run(cell)
    with run.lock() as mine:
        if mine:
            context.store.create(cell, context.watcher.say)
    teacher = context.weights_of(cell.teacher) if cell.teacher else None
    place = context.workspace
    where = place.data_root, str(place.device), torch.get_num_threads(), place.plugin_files
    job = DetectionJob(cell, context.protocol, *where, run.path, teacher)
    watched = Followed(cell, run)
    ended = False

    def receive(message: tuple[Any, ...]) -> None:
        nonlocal ended
        kind, *facts = message
        if kind == "step":
            watched.position = (facts[0] + 1, facts[1])
            context.watcher(watched, "step")
        elif kind == "epoch":
            watched.records.append(facts[0])
            context.watcher(watched, "epoch")
        elif kind == "say":
            context.watcher.say(facts[0])
        else:
            ended = True

    with tempfile.TemporaryDirectory() as folder:
        jobs = [job] if context.protocol.processes == 1 else _of_processes(job, Path(folder, "rendezvous"))
        last = _in_processes("work", jobs, receive, context.stopping)
    if last[0] == "held":
        return False
    if last[0] == "interrupted":
        raise Interrupted("stopped after a whole step; the same command goes on from here")
    if last[0] == "disk":
        raise DiskError(str(last[1]))
    if not ended:  # the process was killed, or could not begin
        run.set_status("failed", message=str(last[1]))
    watched.records = run.metrics
    state = run.state
    if state == "refused":
        context.watcher.say(f"{cell.label}  n/a: {run.status['message']}")
        context.watcher.left_out()
    else:
        context.watcher(watched, state)
    return True


def _of_processes(job: DetectionJob, rendezvous: Path) -> list[DetectionJob]:
    """The job once for each process that has a part of its batches: a GPU each, or a part of the threads."""
    count = job.protocol.processes
    if job.device == "cpu":
        job = replace(job, threads=max(1, job.threads // count))
    devices = environment.of_processes(torch.device(job.device), count)
    return [replace(job, rank=i, rendezvous=rendezvous, device=str(each)) for i, each in enumerate(devices)]


def _in_processes(
    what: str,
    jobs: Sequence[DetectionJob],
    receive: Callable[[Any], None],
    stopping: Callable[[], bool] = lambda: False,
) -> tuple[Any, ...]:
    """Call a function of :mod:`benchmarks.detection.training.process` in a fresh process for each of the jobs.

    When the first one is at its end, or any of them fails, the others are ended too: they would wait for each other.

    Returns:
        The first one's last message; ``("failed", why)`` where it could not send it.
    """
    if not torch.cuda.is_available():
        # mmdetection takes seconds to import. Where there is a GPU its import asks for it, and what is forked after
        # that cannot use it.
        children.preload(f"{__package__}.training.process")
    ranks: dict[children.Child, int] = {}
    last: tuple[Any, ...] = ()
    stopped = False
    try:
        for job in jobs:
            ranks[children.Child(_call, what, job)] = job.rank
        while True:
            for child, message in children.received(list(ranks), 0.2):
                rank = ranks[child]
                if isinstance(message, children.Ended):
                    del ranks[child]
                    child.end()
                    if rank and not child.process.exitcode:
                        continue
                    if last and last[0] not in ("step", "epoch", "say"):
                        return last
                    if stopped and child.process.exitcode == -signal.SIGTERM:  # asked before it could listen
                        return ("interrupted",)
                    name = f"process {rank}" if len(jobs) > 1 else "the process"
                    return ("failed", f"{name} {message.how}")
                if rank == 0:
                    receive(message)
                    last = message
                else:  # only of failures
                    return ("failed", f"process {rank}: {message}")
            if stopping() and not stopped:
                stopped = True
                for child in ranks:
                    child.stop()  # a request: the processes save after the step they are at
    finally:
        for child in ranks:
            child.end()


def _call(send: children.Send, what: str, job: DetectionJob) -> None:
    """In the process: only here mmdetection is imported."""
    if job.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # mmengine takes a GPU wherever it finds one
    prepare()
    from .training import process

    getattr(process, what)(send, job)


def accuracy(entry: Teacher, protocol: Protocol, workspace: Workspace) -> float:
    """AP of an installed file on the validation set.

    Raises:
        UserError: the file does not fit, or the extra [detection] is missing.
    """
    from ..store.cells import student_cell
    from ..tasks import get_task

    check_installed()
    data = get_task(protocol.task).fingerprint(workspace.data_root, protocol)
    cell = student_cell(entry.network, protocol, data, {})
    try:
        metrics = evaluator(workspace)(cell, protocol.changed(precision="fp32"), Zoo(workspace.checkpoints).path(entry))
    except UserError as error:
        raise UserError(f"teacher '{entry.name}' could not be evaluated: {error}") from None
    return metrics[get_task(protocol.task).metric]


def evaluator(workspace: Workspace) -> Evaluate:
    """Evaluates detectors' files on the validation set, each in a process of its own.

    Raises:
        UserError: the extra [detection] is missing.
    """
    check_installed()
    where = workspace.data_root, str(workspace.device), torch.get_num_threads(), workspace.plugin_files

    def evaluate(cell: Cell, protocol: Protocol, file: Path) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            job = DetectionJob(cell, protocol, *where, Path(folder), file=file)
            kind, answer = _in_processes("evaluate", [job], lambda message: None)
        if kind != "metrics":
            raise UserError(str(answer))
        return answer

    return evaluate


def cost(cell: Cell, protocol: Protocol, workspace: Workspace) -> dict[str, Any]:
    """The cost of a cell's training steps, with a teacher of random weights.

    See :func:`benchmarks.cost.profiling.measure`.

    Raises:
        UserError: the measurement failed; the message says how.
    """
    kind, answer = _asked("cost", cell, protocol, workspace)
    if kind != "cost":
        raise UserError(f"the cost of {cell.label} could not be measured: {answer}")
    figures: dict[str, Any] = answer
    return figures


def first_losses(cell: Cell, protocol: Protocol, workspace: Workspace) -> list[list[float]]:
    """Of two steps with a teacher of random weights; and the same with other random numbers drawn in the steps.

    Raises:
        Refused: the method is not for the pair.
        RuntimeError: whatever went wrong in the process.
        UserError: the extra [detection] is missing.
    """
    kind, answer = _asked("losses", cell, protocol, workspace)
    if kind != "losses":
        raise Refused(answer) if kind == "refused" else RuntimeError(answer)
    both: list[list[float]] = answer
    return both


def _asked(what: str, cell: Cell, protocol: Protocol, workspace: Workspace) -> tuple[Any, ...]:
    """What a process of the cell's own answers, which trains it a little."""
    check_installed()
    where = workspace.data_root, str(workspace.device), torch.get_num_threads(), workspace.plugin_files
    with tempfile.TemporaryDirectory() as folder:
        return _in_processes(what, [DetectionJob(cell, protocol, *where, Path(folder))], lambda message: None)


def _mmdet(cell: Cell, weights: Mapping[str, Tensor], folder: Path, workspace: Workspace) -> None:
    """See :func:`benchmarks.detection.mmdet_files.write`."""
    from .mmdet_files import write

    write(cell, weights, folder, workspace)


ENGINES = (
    Engine(
        "detection", ("detection",), run, accuracy, cost, counted=False, forms={"mmdet": _mmdet}, divides=True,
        evaluator=evaluator,
    ),
)  # fmt: skip
