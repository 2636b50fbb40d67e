"""Trackers beside the progress display: one more watcher of what is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..common.process.settings import settings_restored
from ..training.loop import Watched
from .execution.jobs import Watcher
from .trackers import Tracker


class Tracking:
    """A watcher that passes on what it is called with, to trackers as well; one that fails is left out from then on.

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

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        """What has not ended by now was stopped, or its worker was lost: its run knows."""
        for student_run, _trackers in list(self._open.values()):
            self._end(student_run, student_run.run.state)

    def __call__(self, student_run: Watched, event: str) -> None:
        """See :data:`benchmarks.training.loop.Report`."""
        self._watcher(student_run, event)
        key = student_run.cell.key
        if self._kinds and key not in self._open:
            self._open[key] = student_run, {}
            for kind in list(self._kinds):
                with self._unharmed(kind):
                    self._open[key][1][kind] = kind(student_run.cell, self._output / kind.name)
        if event == "epoch":
            for kind, tracker in self._trackers(key):
                with self._unharmed(kind):
                    tracker.epoch(student_run.records[-1])
        elif event != "step":
            self._end(student_run, event)

    def _end(self, student_run: Watched, state: str) -> None:
        for kind, tracker in self._trackers(student_run.cell.key):
            with self._unharmed(kind):
                tracker.end(state)
        self._open.pop(student_run.cell.key, None)

    def _trackers(self, key: str) -> list[tuple[type[Tracker], Tracker]]:
        _, trackers = self._open.get(key, (None, {}))
        return [(kind, tracker) for kind, tracker in trackers.items() if kind in self._kinds]

    @contextmanager
    def _unharmed(self, kind: type[Tracker]) -> Iterator[None]:
        try:
            with settings_restored():  # cells are trained in this process, too
                yield
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
