"""Runs cells one after another, each on several processes that share its batches (``training.replicas``).

The first of them holds the cell and writes its run, as if it were alone; the others train beside it.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kd_methods.errors import UserError

from ...common import environment, plugins
from ...common.process.children import Child, Ended, preload, received
from ...common.process.signals import stop_signals
from ...common.workspace import Workspace
from ...config.protocol import Protocol
from ...store.cell import Cell, TeacherRef
from ...store.runs import FINAL, Run
from ...tasks import get_task
from ...training.failures import Interrupted, line
from ...training.replicas.replica import PartnerLost, Replica, joined
from .. import engines
from ..execution.jobs import Finished, Job
from ..execution.relay import Receiver, Sender, portable
from ..execution.schedule import LOSSES, POLL
from .engine import Engine
from .local import Context, accuracy, measure, until_free

GRACE = 10.0
"""Seconds in which the first process can tell by itself what went wrong, once another one has."""


@dataclass(frozen=True)
class Share:
    """What a process needs to know of its cell.

    files       those of the teachers that are no cells of the store
    rendezvous  the file by which the processes find each other
    rank        which of them it is
    """

    job: Job
    workspace: Workspace
    files: dict[TeacherRef, Path]
    save_seconds: float
    threads: int
    rendezvous: Path
    rank: int = 0

    @property
    def cell(self) -> Cell:
        return self.job.cells[0]

    @property
    def protocol(self) -> Protocol:
        return self.job.protocol


class BesideFailed(NamedTuple):
    """What ended a process that trains beside the first one."""

    message: str


def run(cells: Sequence[Cell], context: Context) -> None:
    """Compute every cell that the store does not have. One that another command holds is waited for.

    Raises:
        Interrupted: the user asked to stop.
        UserError: there is no GPU for each of the processes.
    """
    device, count = context.workspace.device, context.protocol.processes
    present = torch.cuda.device_count() - (device.index or 0) if device.type == "cuda" else count
    if count > present:
        raise UserError(f"{count} processes need a GPU each, and there are {present}: --processes {present}")
    preload(__name__)
    until_free(cells, context, lambda waiting: [cell for cell in waiting if not _ended(cell, context)])


def _ended(cell: Cell, context: Context) -> bool:
    """Train a cell, from its checkpoint on where processes are lost; False if another command holds it."""
    stored, how = context.store.run(cell), ""
    for losses in range(1, LOSSES + 1):
        with stored.lock() as mine:
            if not mine:
                return False
        how = _once(cell, context)
        if not how or stored.state in FINAL:
            return True
        if losses < LOSSES:
            context.watcher.say(f"a process was lost ({how}); {cell.label} goes on")
    _failed(cell, f"its processes were lost {LOSSES} times: {how}", context)
    return True


def _once(cell: Cell, context: Context) -> str:
    """Train a cell to its end, whatever that is; how a process was lost, where one was."""
    receive, asked, failure, until = Receiver(context.watcher, context.store), False, "", float("inf")
    with tempfile.TemporaryDirectory() as folder:
        shares = _shares(cell, context, Path(folder, "rendezvous"))
        children = {Child(_work, share): share.rank for share in shares}
        first, running = next(iter(children)), dict(children)
        try:
            while running and time.monotonic() < until:
                if context.stopping() and not asked:
                    asked = True
                    first.stop()  # the others do what the first one does
                for child, message in received(list(running), POLL):
                    match message:
                        case Finished(PartnerLost()):
                            pass  # of whom more will be heard
                        case Finished(error) if child is first:
                            if error:
                                raise error
                            return ""
                        case BesideFailed(text):
                            failure, until = f"process {children[child]}: {text}", time.monotonic() + GRACE
                        case Ended(how):
                            del running[child]
                            if child.process.exitcode and not failure:
                                if asked:
                                    raise Interrupted("stopped; the same command goes on from the last checkpoint")
                                return how
                        case Finished():
                            pass
                        case _:
                            receive(shares[0].job, message)
        finally:
            for child in children:
                child.end()
    if failure:
        _failed(cell, failure, context)
        return ""
    return "they lost each other"


def _failed(cell: Cell, message: str, context: Context) -> None:
    context.store.run(cell).set_status("failed", message=message)
    context.watcher.say(f"{cell.label}  FAILED: {message}")
    context.watcher.left_out()


def _shares(cell: Cell, context: Context, rendezvous: Path) -> list[Share]:
    """One for each process: a GPU, from the workspace's on, or a part of the threads."""
    count, workspace = context.protocol.processes, context.workspace.portable()
    files = {ref: context.weights_of(ref) for ref in (cell.teacher, cell.start) if ref and not ref.cell}
    job, threads = Job((cell,), context.protocol, context.similarity), max(1, torch.get_num_threads() // count)
    share = Share(job, workspace, files, context.save_seconds, threads, rendezvous)
    devices = environment.of_processes(workspace.device, count)
    return [replace(share, rank=i, workspace=replace(workspace, device=each)) for i, each in enumerate(devices)]


def _work(send: Callable[[Any], None], share: Share) -> None:
    """In a process."""
    torch.set_num_threads(share.threads)
    error: BaseException | None = None
    with stop_signals(signal.SIGTERM) as stopping:  # also of one beside the first, which does what that does
        try:
            plugins.load(share.workspace.plugin_files)
            with joined(share.rank, share.protocol.processes, share.rendezvous, share.workspace.device) as replica:
                context, task = _context(share, send, stopping, replica), get_task(share.protocol.task)
                if replica.first:
                    engines.of(task).train(share.job.cells, context)
                elif assist := engines.of(task).assist:
                    beside = Beside(context.store.run(share.cell))
                    assist(share.cell, context, beside)
                    if beside.state == "failed":
                        send(BesideFailed(beside.status["message"]))
        except (Exception, Interrupted, PartnerLost) as raised:
            if share.rank and isinstance(raised, Exception):
                send(BesideFailed(line(raised)))
            error = portable(raised)
    send(Finished(error))


def _context(share: Share, send: Callable[[Any], None], stopping: Callable[[], bool], replica: Replica) -> Context:
    workspace, protocol = share.workspace, share.protocol
    data = get_task(protocol.task).open(workspace.data_root, protocol, workspace.device)
    watcher = Sender(send if replica.first else _unheard)
    return Context(
        workspace, protocol, data, share.files.__getitem__, watcher, stopping,
        share.job.similarity and replica.first, share.save_seconds, replica,
    )  # fmt: skip


def _unheard(message: object) -> None:
    """What a process beside the first one tells of its steps: the same as that."""


class Beside(Run):
    """A run that another process writes: it is read, and what would be written is forgotten, but for the status."""

    def __init__(self, written: Run) -> None:
        super().__init__(written.path, written.key)
        self._status_here: dict[str, Any] = {"state": "elsewhere"}

    @property
    def status(self) -> dict[str, Any]:
        return self._status_here

    def set_status(self, state: str, **facts: Any) -> None:
        self._status_here = {"state": state, **facts}

    def set_metrics(self, records: list[dict[str, Any]]) -> None:
        pass

    def write(self, name: str, content: bytes) -> None:
        pass


ENGINES = (Engine("replicas", ("images", "text"), run, accuracy, measure, alone=False, divides=True),)
