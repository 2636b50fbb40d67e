"""A job in a process of its own, which sends what it does."""

from __future__ import annotations

import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...common import plugins
from ...common.events import CellEnded, EpochEnded, Event, Stepped
from ...common.workspace import Workspace
from ...training.failures import Interrupted, line
from .jobs import Finished, Job, opened, run

EVERY = 0.5
"""Seconds between two messages about the steps of a cell."""


class Sender:
    """A watcher that sends the events, of steps in a row the sum."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._waiting: dict[str, Stepped] = {}
        self._sent: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped | EpochEnded | CellEnded):
            waiting, now = self._waiting.pop(event.key, None), time.monotonic()
            if isinstance(event, Stepped):
                event = replace(event, steps=event.steps + (waiting.steps if waiting else 0))
                if now - self._sent.get(event.key, float("-inf")) < EVERY:
                    self._waiting[event.key] = event
                    return
            elif waiting:
                self._send(waiting)
            self._sent[event.key] = now
        self._send(event)


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
