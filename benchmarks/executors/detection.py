"""Runs cells of detection one after another, each in a process of its own, where mmengine trains it.

Nothing of mmdetection is imported in this process.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from kd_methods.errors import UserError

from ..cell import Cell
from ..networks import detectors
from ..protocol import Detection, Protocol
from ..store import Run
from ..teachers import Teacher, Zoo
from ..training.loop import Interrupted
from .local import Context, until_free


@dataclass
class Followed:
    """A cell as its process tells of it."""

    cell: Cell
    run: Run
    position: tuple[int, int] = (1, 0)
    records: list[dict[str, Any]] = field(default_factory=list)
    first_epoch: int = 1


@dataclass(frozen=True)
class Job:
    """What a process needs to know of its cell; ``teacher`` is the file with the teacher's weights."""

    cell: Cell
    protocol: Protocol
    data_root: Path
    device: str
    threads: int
    plugin_files: tuple[Path, ...]
    path: Path
    teacher: Path | None = None

    @property
    def run(self) -> Run:
        return Run(self.path)

    @property
    def detection(self) -> Detection:
        """The protocol's part on detection."""
        assert self.protocol.detection is not None
        return self.protocol.detection


def run(cells: Sequence[Cell], context: Context) -> None:
    """Compute every cell that the store does not have. One that another process holds is waited for.

    Raises:
        Interrupted: the user asked to stop.
        UserError: the extra [detection] is missing.
    """
    detectors.check_installed()
    until_free(cells, context, lambda waiting: [cell for cell in waiting if not _one(cell, context)])


def _one(cell: Cell, context: Context) -> bool:
    """Train a cell; False if another process holds it."""
    run = context.store.create(cell)
    teacher = context.weights_of(cell.teacher) if cell.teacher else None
    where = context.data_root, str(context.device), torch.get_num_threads(), context.plugin_files
    job = Job(cell, context.protocol, *where, run.path, teacher)
    watched = Followed(cell, run)
    told = False

    def hear(message: tuple[Any, ...]) -> None:
        nonlocal told
        kind, *facts = message
        if kind == "step":
            watched.position = (facts[0] + 1, facts[1])
            context.report(watched, "step")
        elif kind == "epoch":
            watched.records.append(facts[0])
            context.report(watched, "epoch")
        else:
            told = True

    last = _in_process("work", job, hear, context.stopping)
    if last[0] == "held":
        return False
    if last[0] == "interrupted":
        raise Interrupted("stopped after a whole step; the same command goes on from here")
    if not told:  # the process was killed, or could not begin
        run.set_status("failed", message=str(last[1]))
    watched.records = run.metrics
    state = run.state
    if state == "refused":
        context.say(f"{cell.label}  n/a: {run.status['message']}")
        context.left_out()
    else:
        context.report(watched, state)
    return True


def _in_process(
    what: str, job: Job, hear: Callable[[Any], None], stopping: Callable[[], bool] = lambda: False
) -> tuple[Any, ...]:
    """Call a function of :mod:`benchmarks.training.detection` in a fresh process; returns its last message."""
    methods = multiprocessing.get_context("forkserver")
    methods.set_forkserver_preload(["benchmarks.training.detection"])  # mmdetection takes seconds to import
    receiver, sender = methods.Pipe(duplex=False)
    process = methods.Process(target=_enter, args=(what, sender, job), daemon=True)
    process.start()
    sender.close()
    message: tuple[Any, ...] = ()
    asked = False
    try:
        while True:
            if receiver.poll(0.2):
                message = receiver.recv()
                hear(message)
            if stopping() and not asked:
                asked = True
                process.terminate()  # a request: the process saves after the step it is at
    except EOFError:
        process.join()
    if not message or message[0] in ("step", "epoch"):
        return ("killed", f"the process ended with exit code {process.exitcode}")
    return message


def _enter(what: str, sender: Connection, job: Job) -> None:
    """In the process: only here mmdetection is imported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the parent decides
    from ..training import detection

    getattr(detection, what)(sender, job)


def accuracy(entry: Teacher, zoo: Zoo, protocol: Protocol, data_root: Path, device: torch.device) -> float:
    """AP of an installed file on the validation set.

    Raises:
        UserError: the file does not fit, or the extra [detection] is missing.
    """
    from ..plan import student_cell

    detectors.check_installed()
    cell = student_cell(entry.network, protocol, data_root, {})
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        job = Job(cell, protocol, data_root, str(device), threads, (), Path(folder), zoo.path(entry))
        kind, answer = _in_process("evaluate", job, lambda message: None)
    if kind != "value":
        raise UserError(f"teacher '{entry.name}' could not be evaluated: {answer}")
    return answer


def cost(
    cell: Cell,
    protocol: Protocol,
    data_root: Path,
    device: torch.device,
    plugin_files: Sequence[Path] = (),
    prepared: Path | None = None,
) -> dict[str, Any]:
    """The cost of a cell's training steps, with a teacher of random weights; see :func:`benchmarks.profiling.measure`.

    Raises:
        UserError: the measurement failed; the message says how.
    """
    detectors.check_installed()
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        job = Job(cell, protocol, data_root, str(device), threads, tuple(plugin_files), Path(folder))
        kind, answer = _in_process("cost", job, lambda message: None)
    if kind != "cost":
        raise UserError(f"the cost of {cell.label} could not be measured: {answer}")
    return answer
