"""Runs cells one after another, each on several processes that share its batches (``training.replicas``).

The first of them holds the cell and writes its run, as if it were alone; the others train beside it.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...common import devices, memory, plugins
from ...common.events import EpochRecord, Event, Watcher
from ...common.process.children import preload
from ...common.process.signals import stop_signals
from ...common.process.together import Answer, BesideFailed, Lost, together
from ...common.workspace import Workspace
from ...config.protocol import Protocol
from ...store.cell import Cell, TeacherRef
from ...store.runs import FINAL, Run
from ...tasks import get_task
from ...training.failures import LOST_AT_MOST, Failure, Interrupted, line
from ...training.replicas.replica import PartnerLost, Replica, joined
from .. import engines
from .context import Context, opened
from .counting import Counted
from .engine import Engine
from .local import accuracy, measure, until_free, until_unlocked
from .sending import Sender, portable

GRACE = 10.0
"""Seconds in which the first process can tell by itself what went wrong, once another one has."""


@dataclass(frozen=True)
class Share:
    """What a process needs to know of its cell.

    protocol    the cell's recipe, on its task
    similarity  whether the student is compared with its teacher after every epoch
    files       those of the teachers that are no cells of the store
    rendezvous  the file by which the processes find each other
    rank        which of them it is
    """

    cell: Cell
    protocol: Protocol
    similarity: bool
    workspace: Workspace
    files: dict[TeacherRef, Path]
    save_seconds: float
    threads: int
    rendezvous: Path
    rank: int = 0


def run(cells: Sequence[Cell], context: Context) -> None:
    """Compute every cell that the store does not have. One that another command holds is waited for.

    Raises:
        Interrupted: the user asked to stop.
        UserError: there is no GPU for each of the processes.
    """
    devices.check_enough(context.workspace.device, context.protocol.processes)
    preload(__name__)
    until_free(cells, context, lambda waiting: [cell for cell in waiting if not _ended(cell, context)])


def _ended(cell: Cell, context: Context) -> bool:
    """Train a cell, from its checkpoint on where processes are lost; False if another command holds it."""
    stored = context.store.run(cell)
    for losses in range(1, LOST_AT_MOST + 1):
        with stored.lock() as mine:
            if not mine:
                return False
        lost = _once(cell, context)
        if not lost or stored.state in FINAL:
            return True
        if lost.failed or losses == LOST_AT_MOST:
            failure = Failure("failed", lost.for_good(LOST_AT_MOST))
            failure.mark(stored)
            context.watcher(failure.left_out(cell))
            return True
        context.say(f"a process was lost ({lost.how}); {cell.label} goes on")
        until_unlocked(stored, context.stopping)
    return True


def _once(cell: Cell, context: Context) -> Lost | None:
    """Train a cell to its end, whatever that is; how a process was lost, where one was.

    Raises:
        Interrupted: the user asked to stop.
        Exception: what ended the first process.
    """
    with tempfile.TemporaryDirectory() as folder:
        shares = _shares(cell, context, Path(folder, "rendezvous"))
        end = together(_work, shares, context.watcher, context.stopping, GRACE)
    if isinstance(end, Answer):
        if end.content:
            raise end.content
        return None
    if end.stopped and not end.failed:
        raise Interrupted("stopped; the same command goes on from the last checkpoint")
    return end


def _shares(cell: Cell, context: Context, rendezvous: Path) -> list[Share]:
    """One for each process: a GPU, from the workspace's on, or a part of the threads."""
    count, workspace = context.protocol.processes, context.workspace.portable()
    files = {ref: context.weights_of(ref) for ref in (cell.teacher, cell.start) if ref and not ref.cell}
    threads = max(1, torch.get_num_threads() // count)
    share = Share(
        cell, context.protocol, context.similarity, workspace, files, context.save_seconds, threads, rendezvous
    )
    places = devices.of_processes(workspace.device, count)
    return [replace(share, rank=i, workspace=replace(workspace, device=each)) for i, each in enumerate(places)]


def _work(send: Callable[[Any], None], share: Share) -> None:
    """In a process."""
    torch.set_num_threads(share.threads)
    memory.keep_memory(share.workspace.device)
    error: BaseException | None = None
    with stop_signals(signal.SIGTERM, again=False) as stopping:  # one beside the first does what that does
        try:
            plugins.load_again(share.workspace.plugin_files, share.cell.plugins)
            with joined(share.rank, share.protocol.processes, share.rendezvous, share.workspace.device) as replica:
                context, task = _context(share, send, stopping, replica), get_task(share.protocol.task)
                if replica.first:
                    engines.of(task).train([share.cell], context)
                elif assist := engines.of(task).assist:
                    beside = Beside(context.store.run(share.cell))
                    assist(share.cell, context, beside)
                    if beside.state == "failed":
                        send(BesideFailed(beside.status["message"]))
        except PartnerLost:
            return  # of whom the first process reports
        except (Exception, Interrupted) as raised:
            if share.rank and isinstance(raised, Exception):
                send(BesideFailed(line(raised)))
            error = portable(raised)
    if not share.rank:
        send(Answer(error))


def _context(share: Share, send: Callable[[Any], None], stopping: Callable[[], bool], replica: Replica) -> Context:
    workspace, protocol = share.workspace, share.protocol
    compared = [share.cell] if replica.first else []  # reading all of a large set's names once is enough
    data = opened(compared, protocol, workspace)
    watcher: Watcher = Sender(send) if replica.first else _unheard
    return Context(
        workspace, protocol, data, share.files.__getitem__, watcher, stopping,
        share.similarity and replica.first, share.save_seconds, replica,
    )  # fmt: skip


def _unheard(event: Event) -> None:
    """What a process beside the first one reports of its steps: the same as that."""


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

    def set_metrics(self, records: Sequence[EpochRecord]) -> None:
        pass

    def write(self, name: str, content: bytes) -> None:
        pass


ENGINES = (Engine("replicas", ("images", "text"), run, accuracy, measure, Counted, alone=False, divides=True),)
