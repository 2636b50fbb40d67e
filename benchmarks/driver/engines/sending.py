"""What a process that trains sends to the one that follows it: events, and the error that ended it."""

from __future__ import annotations

import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...common.events import CellEnded, EpochEnded, Event, Stepped
from ...training.failures import line

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


def portable(error: BaseException) -> BaseException:
    """An error that can be raised in another process, with its traceback as a note."""
    note = "".join(traceback.format_exception(error))
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # of the classes of others
        copy = RuntimeError(line(error))
    copy.add_note(note)
    return copy
