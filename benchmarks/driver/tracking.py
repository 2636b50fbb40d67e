"""Trackers beside the progress display: one more watcher of what is trained."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ..common.process.settings import settings_restored
from ..training.loop import Watched
from .execution.jobs import Watcher
from .trackers import Tracker

PATIENCE = 120.0
"""Seconds that a call of a tracker may take: some wait for a server, and that may not be there."""


class Tracking:
    """A watcher that passes on what it is called with, to trackers as well.

    One that fails, or is not back in time, is left out from then on.

    Args:
        watcher: the one that it stands before.
        kinds: the trackers' classes, of which each cell gets its own.
        output: the folder in which each kind has one of its name.

    ``error`` is what an essential tracker raised, which ends the run.
    """

    def __init__(self, watcher: Watcher, kinds: Sequence[type[Tracker]], output: Path) -> None:
        self._watcher, self._output = watcher, output
        self._kinds = list(kinds)
        self.error: BaseException | None = None
        self._open: dict[str, tuple[Watched, dict[type[Tracker], Tracker]]] = {}
        self._threads = {kind: Thread(kind.name) for kind in kinds if not kind.essential}

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        """What has not ended by now was stopped, or its worker was lost: its run knows."""
        for student_run, _trackers in list(self._open.values()):
            self._end(student_run, student_run.run.state)
        for thread in self._threads.values():
            thread.end()

    def __call__(self, student_run: Watched, event: str) -> None:
        """See :data:`benchmarks.training.loop.Report`."""
        self._watcher(student_run, event)
        key = student_run.cell.key
        if self._kinds and key not in self._open:
            self._open[key] = student_run, {}
            for kind in list(self._kinds):
                with self._unharmed(kind):
                    self._open[key][1][kind] = self._call(kind, kind, student_run.cell, self._output / kind.name)
        if event == "epoch":
            for kind, tracker in self._trackers(key):
                with self._unharmed(kind):
                    self._call(kind, tracker.epoch, student_run.records[-1])
        elif event != "step":
            self._end(student_run, event)

    def _end(self, student_run: Watched, state: str) -> None:
        for kind, tracker in self._trackers(student_run.cell.key):
            with self._unharmed(kind):
                self._call(kind, tracker.end, state)
        self._open.pop(student_run.cell.key, None)

    def _trackers(self, key: str) -> list[tuple[type[Tracker], Tracker]]:
        _, trackers = self._open.get(key, (None, {}))
        return [(kind, tracker) for kind, tracker in trackers.items() if kind in self._kinds]

    def _call(self, kind: type[Tracker], function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a tracker where it cannot stop a run: in its thread, whose answer is waited for."""
        thread = self._threads.get(kind)
        return thread.call(function, *arguments) if thread else function(*arguments)

    @contextmanager
    def _unharmed(self, kind: type[Tracker]) -> Iterator[None]:
        try:
            with settings_restored():  # cells are trained in this process, too
                yield
        except Late:
            self._kinds.remove(kind)
            self.say(f"tracker {kind.name} is not back after {PATIENCE:.0f} s; training goes on without it")
        except (Exception, SystemExit) as error:  # of a library of others, or of what a user wrote
            self._kinds.remove(kind)
            if kind.essential:
                self.error = error
            else:
                self.say(f"tracker {kind.name} fails ({type(error).__name__}: {error}); training goes on without it")

    def say(self, line: str) -> None:
        self._watcher.say(line)

    def left_out(self) -> None:
        self._watcher.left_out()


class Late(BaseException):
    """A tracker is not back in time. It may raise whatever it likes, so this is no kind of Exception."""


class Thread:
    """Where one kind of tracker is called, always the same: libraries keep to a thread. It keeps no process alive."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name=f"tracker {name}", daemon=True).start()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function gives or raises.

        Raises:
            Late: it is not back in time.
        """
        future: Future[Any] = Future()
        self._calls.put((future, function, arguments))
        if not wait([future], PATIENCE).done:
            raise Late
        return future.result()

    def end(self) -> None:
        """After the calls so far."""
        self._calls.put(None)

    def _work(self) -> None:
        while call := self._calls.get():
            future, function, arguments = call
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # raised where it was called
                future.set_exception(error)
