"""Runs cells of detection one after another, each in a process of its own, where mmengine trains it.

Where a protocol shares its batches, a cell has several processes, which mmengine's Runner takes as those of its
launcher ``pytorch``. Nothing of mmdetection is imported in this process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_methods.errors import Changed, DiskError, UserError

from ..common import devices
from ..common.events import CellEnded
from ..common.process.children import Send, preload
from ..common.process.together import Answer, Lost, together
from ..common.workspace import Workspace
from ..config.protocol import Protocol
from ..driver.engines import Context, Engine
from ..driver.engines.engine import Evaluate, Evaluated
from ..driver.engines.local import until_free, until_unlocked
from ..report.model import CostEntry
from ..store.cell import Cell
from ..store.make_cell import student_cell
from ..store.runs import Run
from ..tasks import get_task
from ..teachers.zoo import Teacher, Zoo
from ..training.failures import LOST_AT_MOST, Failure, Interrupted, Refused
from .networks.configurations import check_installed, prepare
from .training.job import DetectionJob, EvaluationJob


def run(cells: Sequence[Cell], context: Context) -> None:
    """Compute every cell that the store does not have. One that another process holds is waited for.

    Raises:
        Interrupted: the user asked to stop.
        UserError: the extra [detection] is missing, or a GPU that the protocol needs.
    """
    check_installed()
    devices.check_enough(context.workspace.device, context.protocol.processes)
    until_free(cells, context, lambda waiting: [cell for cell in waiting if not _one(cell, context)])


def _one(cell: Cell, context: Context) -> bool:
    """Train a cell, from its checkpoint on where processes are lost; False if another command holds it."""
    run = context.store.run(cell)
    with run.lock() as mine:
        if not mine:
            return False
        if run.ended:  # by whoever held it before, or in an archive that was imported meanwhile
            return True
        context.store.create(cell, context.say)
    teacher = context.weights_of(cell.teacher) if cell.teacher else None
    job = DetectionJob(cell, context.protocol, *_where(context.workspace), run.path, teacher)
    for losses in range(1, LOST_AT_MOST + 1):
        with tempfile.TemporaryDirectory() as folder:
            jobs = [job] if context.protocol.processes == 1 else _of_processes(job, Path(folder, "rendezvous"))
            end = _in_processes("work", jobs, context.watcher, context.stopping)
        match end:
            case Answer("held"):
                return False
            case Answer("interrupted") | Lost(failed=False, stopped=True):
                raise Interrupted("stopped after a whole step; the same command goes on from here")
            case Answer(DiskError() | Changed() as error):
                raise error
            case Lost(failed=False) if losses < LOST_AT_MOST:
                context.say(f"a process was lost ({end.how}); {cell.label} goes on")
                until_unlocked(run, context.stopping)
                continue
            case Lost():
                Failure("failed", end.for_good(LOST_AT_MOST)).mark(run)
        break
    _tell(cell, run, context)
    return True


def _tell(cell: Cell, run: Run, context: Context) -> None:
    """Tell how a cell has ended."""
    status = run.status
    if status["state"] == "done":
        context.watcher(CellEnded(cell.key, cell.label, "done", last=status["last"]))
        return
    failure = Failure(status["state"], status["message"])
    context.watcher(failure.left_out(cell) if failure.state == "refused" else failure.ended(cell))


def _of_processes(job: DetectionJob, rendezvous: Path) -> list[DetectionJob]:
    """The job once for each process that has a part of its batches: a GPU each, or a part of the threads."""
    count = job.protocol.processes
    if job.device == "cpu":
        job = replace(job, threads=max(1, job.threads // count))
    places = devices.of_processes(torch.device(job.device), count)
    return [replace(job, rank=i, rendezvous=rendezvous, device=str(each)) for i, each in enumerate(places)]


def _in_processes(
    what: str,
    jobs: Sequence[DetectionJob],
    receive: Callable[[Any], None] = lambda event: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Answer | Lost:
    """Call a function of ``detection.training.process`` in a fresh process for each of the jobs.

    When the first one is at its end, or any of them fails, the others are ended too: they would wait for each other.
    """
    if not torch.cuda.is_available():
        # mmdetection takes seconds to import. Where there is a GPU its import asks for it, and what is forked after
        # that cannot use it.
        preload(f"{__package__}.training.process")
    return together(_call, [(what, job) for job in jobs], receive, stopping)


def _call(send: Send, share: tuple[str, DetectionJob]) -> None:
    """In the process: only here mmdetection is imported."""
    what, job = share
    if job.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # mmengine takes a GPU wherever it finds one
    prepare()
    from .training import process

    getattr(process, what)(send, job)


def accuracy(entry: Teacher, protocol: Protocol, workspace: Workspace) -> Mapping[str, float]:
    """AP of an installed file on the validation set.

    Raises:
        UserError: the file does not fit, or the extra [detection] is missing.
    """
    check_installed()
    data = get_task(protocol.task).fingerprint(workspace.data_root, protocol)
    cell = student_cell(entry.network, protocol, data, {})
    try:
        file = Zoo(workspace.checkpoints).path(entry)
        return evaluator(workspace)(cell, protocol.changed(precision="fp32"), file).metrics
    except UserError as error:
        raise UserError(f"teacher '{entry.name}' could not be evaluated: {error}") from None


def evaluator(workspace: Workspace) -> Evaluate:
    """Evaluates detectors' files on the validation set, each in a process of its own.

    Raises:
        UserError: the extra [detection] is missing.
    """
    check_installed()

    def evaluate(cell: Cell, protocol: Protocol, file: Path) -> Evaluated:
        with tempfile.TemporaryDirectory() as folder:
            job = EvaluationJob(cell, protocol, *_where(workspace), Path(folder), file=file)
            return Evaluated(_asked("evaluate", job))

    return evaluate


def cost(cell: Cell, protocol: Protocol, workspace: Workspace) -> CostEntry:
    """The cost of a cell's training steps, with a teacher of random weights.

    See :func:`benchmarks.cost.measuring.measure`.

    Raises:
        UserError: the measurement failed; the message says how.
    """
    check_installed()
    with tempfile.TemporaryDirectory() as folder:
        try:
            figures: CostEntry = _asked("cost", DetectionJob(cell, protocol, *_where(workspace), Path(folder)))
        except (UserError, Refused) as error:
            raise UserError(f"the cost of {cell.label} could not be measured: {error}") from None
    return figures


def first_losses(cell: Cell, protocol: Protocol, workspace: Workspace) -> list[list[float]]:
    """Of two steps with a teacher of random weights; and the same with other random numbers drawn in the steps.

    Raises:
        Refused: the method is not for the pair.
        RuntimeError: whatever went wrong in the process.
        UserError: the extra [detection] is missing.
    """
    check_installed()
    with tempfile.TemporaryDirectory() as folder:
        try:
            both: list[list[float]] = _asked("losses", DetectionJob(cell, protocol, *_where(workspace), Path(folder)))
        except UserError as error:
            raise RuntimeError(str(error)) from None
    return both


def _where(workspace: Workspace) -> tuple[Path, str, int, tuple[Path, ...]]:
    """Of a job what it shares with others."""
    return workspace.data_root, str(workspace.device), torch.get_num_threads(), workspace.plugin_files


def _asked(what: str, job: DetectionJob) -> Any:
    """What a process of the job's own answers.

    Raises:
        Refused: the method is not for the pair.
        UserError: what went wrong there.
    """
    end = _in_processes(what, [job])
    if isinstance(end, Lost):
        raise UserError(end.words)
    if isinstance(end.content, Exception):
        raise end.content
    return end.content


def _mmdet(cell: Cell, weights: Mapping[str, Tensor], folder: Path, workspace: Workspace) -> None:
    """See :func:`benchmarks.detection.mmdet_files.write`."""
    from .mmdet_files import write

    write(cell, weights, folder, workspace)


ENGINES = (
    Engine(
        "detection", ("detection",), run, accuracy, cost, forms={"mmdet": _mmdet}, divides=True, evaluator=evaluator
    ),
)
