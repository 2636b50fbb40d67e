"""How a job is followed from another process: what it does as messages, and the messages as what it does."""

from __future__ import annotations

import pickle
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...common import plugins
from ...common.workspace import Workspace
from ...store.cell import Cell
from ...store.runs import Run, Store
from ...training.failures import Interrupted, line
from ...training.loop import Watched
from .jobs import Finished, Job, Watcher, opened, run

EVERY = 0.5
"""Seconds between two messages about the steps of a cell."""


class CellEvent(NamedTuple):
    """An event of a cell in training (see :data:`benchmarks.training.loop.Report`), without the cell.

    ``steps`` were made since the last message about the cell; ``record`` is that of the epoch, where one ended.
    """

    key: str
    kind: str
    position: tuple[int, int]
    first_epoch: int
    steps: int
    record: dict[str, Any] | None


class Said(NamedTuple):
    """A line for a person."""

    line: str


class LeftOut(NamedTuple):
    """A cell is not trained after all."""


class Sender:
    """A :class:`benchmarks.driver.execution.jobs.Watcher` that sends messages."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._steps: dict[str, int] = defaultdict(int)
        self._sent: dict[str, float] = {}

    def __call__(self, student_run: Watched, event: str) -> None:
        key, now = student_run.cell.key, time.monotonic()
        if event == "step":
            self._steps[key] += 1
            if now - self._sent.get(key, float("-inf")) < EVERY:
                return
        self._sent[key] = now
        record = student_run.records[-1] if student_run.records and event in ("epoch", "done") else None
        self._send(
            CellEvent(key, event, student_run.position, student_run.first_epoch, self._steps.pop(key, 0), record)
        )

    def say(self, line: str) -> None:
        self._send(Said(line))

    def left_out(self) -> None:
        self._send(LeftOut())


@dataclass
class Followed:
    """A cell as another process reports it."""

    cell: Cell
    run: Run
    position: tuple[int, int] = (1, 0)
    first_epoch: int = 1
    records: list[dict[str, Any]] = field(default_factory=list)


class Receiver:
    """Calls a watcher as messages say."""

    def __init__(self, watcher: Watcher, store: Store) -> None:
        self._watcher, self._store = watcher, store
        self._followed: dict[str, Followed] = {}

    def __call__(self, job: Job, message: CellEvent | Said | LeftOut) -> None:
        match message:
            case Said(line):
                self._watcher.say(line)
            case LeftOut():
                self._watcher.left_out()
            case CellEvent(key):
                if key not in self._followed:
                    cell = next(cell for cell in job.cells if cell.key == key)
                    self._followed[key] = Followed(cell, self._store.run(cell))
                self._pass_on(self._followed[key], message)

    def _pass_on(self, followed: Followed, event: CellEvent) -> None:
        followed.first_epoch = event.first_epoch
        if event.kind == "step":  # the first one of a cell is about one step: progress learns there where it begins
            followed.position = event.position
        for _ in range(event.steps):
            self._watcher(followed, "step")
        if event.record:
            followed.records = [event.record]
        if event.kind != "step":
            self._watcher(followed, event.kind)


def work(send: Callable[[Any], None], job: Job, workspace: Workspace, stopping: Callable[[], bool]) -> None:
    """Run a job in a process of its own; what it does, and how it ends, is sent."""
    error: BaseException | None = None
    try:
        plugins.load_again(workspace.plugin_files, {name: file for c in job.cells for name, file in c.plugins.items()})
        run(job, workspace, Sender(send), stopping, opened(job, workspace))
    except (Exception, Interrupted) as raised:  # concerns more than a cell
        error = portable(raised)
    send(Finished(error))


def portable(error: BaseException) -> BaseException:
    """An error that can be raised in another process, with its traceback as a note."""
    note = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # of the classes of others
        copy = RuntimeError(line(error))
    copy.add_note(note)
    return copy
