"""Trackers beside the progress display: one more watcher of what is trained."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from ..common.events import CellEnded, EpochEnded, Event, Said, Stepped, Watcher
from ..common.process.settings import settings_restored
from ..store.cell import Cell
from ..store.runs import Store
from .trackers import Tracker

PATIENCE = 120.0
"""Seconds that a call of a tracker may take: some wait for a server, and that may not be there."""


class Tracking:
    """A watcher that passes on what it is called with, to trackers as well.

    One that fails, or is not back in time, is left out from then on.

    Args:
        watcher: the one that it stands before.
        kinds: the trackers' classes, of which each cell gets its own.
        cells: that may be trained.
        store: of their runs, in whose folder each kind has one of its name.

    ``error`` is what an essential tracker raised, which ends the run.
    """

    def __init__(self, watcher: Watcher, kinds: Sequence[type[Tracker]], cells: Iterable[Cell], store: Store) -> None:
        self._watcher, self._store = watcher, store
        self._kinds = list(kinds)
        self._cells = {cell.key: cell for cell in cells}
        self.error: BaseException | None = None
        self._open: dict[str, dict[type[Tracker], Tracker]] = {}
        self._threads = {kind: Thread(kind.name) for kind in kinds if not kind.essential}

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        """What has not ended by now was stopped, or its worker was lost: its run knows."""
        for key in list(self._open):
            self._end(key, self._store.run(key).state)
        for thread in self._threads.values():
            thread.end()

    def __call__(self, event: Event) -> None:
        self._watcher(event)
        if not isinstance(event, Stepped | EpochEnded | CellEnded):
            return
        key = event.key
        if self._kinds and key not in self._open:
            self._open[key] = {}
            for kind in list(self._kinds):
                with self._unharmed(kind):
                    self._open[key][kind] = self._call(kind, kind, self._cells[key], self._store.root / kind.name)
        if isinstance(event, EpochEnded):
            for kind, tracker in self._trackers(key):
                with self._unharmed(kind):
                    self._call(kind, tracker.epoch, event.record)
        elif isinstance(event, CellEnded):
            self._end(key, event.state)

    def _end(self, key: str, state: str) -> None:
        for kind, tracker in self._trackers(key):
            with self._unharmed(kind):
                self._call(kind, tracker.end, state)
        self._open.pop(key, None)

    def _trackers(self, key: str) -> list[tuple[type[Tracker], Tracker]]:
        return [(kind, tracker) for kind, tracker in self._open.get(key, {}).items() if kind in self._kinds]

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
            line = f"tracker {kind.name} is not back after {PATIENCE:.0f} s; training goes on without it"
            self._watcher(Said(line))
        except (Exception, SystemExit) as error:  # of a library of others, or of what a user wrote
            self._kinds.remove(kind)
            if kind.essential:
                self.error = error
            else:
                line = f"tracker {kind.name} fails ({type(error).__name__}: {error}); training goes on without it"
                self._watcher(Said(line))


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
