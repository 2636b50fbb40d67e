"""Stopping on request."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals(*numbers: signal.Signals, again: bool = True) -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C (or SIGTERM) asks the loop to stop after the step; the second ends at once.

    Only the main thread gets signals; in another one nothing asks.

    Args:
        numbers: other signals than these two.
        again: whether a second one ends at once. A process that another one stops may be sent the first twice, by that
            one and by what sends it to all processes (``timeout``, a scheduler), and loses its step by the second.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    stopping = False

    def ask(number: int, frame: Any) -> None:
        nonlocal stopping
        if stopping and again:
            raise KeyboardInterrupt
        stopping = True

    before = {number: signal.signal(number, ask) for number in numbers or (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
