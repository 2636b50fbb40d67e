"""Processes that do one thing together: the first one reports and answers, all end with it. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .children import Child, Ended, received

POLL = 0.2
"""Seconds that one waits for messages."""

FAREWELL = 30.0
"""Seconds in which a process that has answered can end by itself."""


class Answer(NamedTuple):
    """The last message of the first process."""

    content: Any


class BesideFailed(NamedTuple):
    """The message of a process beside the first one that cannot go on."""

    message: str


class Lost(NamedTuple):
    """Why there is no answer.

    which    process it was
    how      it is gone, or, where it ``failed``, what it said
    stopped  whether the first one had been asked to stop
    """

    which: str
    how: str
    failed: bool
    stopped: bool

    @property
    def words(self) -> str:
        return f"{self.which}{':' if self.failed else ''} {self.how}"

    def for_good(self, times: int) -> str:
        """Words for the last of so many losses, after which no other process begins."""
        return self.words if self.failed else f"its processes were lost {times} times: {self.how}"


def together(
    work: Callable[..., None],
    shares: Sequence[Any],
    receive: Callable[[Any], None],
    stopping: Callable[[], bool] = lambda: False,
    grace: float = 0.0,
) -> Answer | Lost:
    """Call ``work(send, share)`` in a process for each share, and wait for the answer of the first one.

    Args:
        work: a function of a module. What it sends in the first process goes to ``receive``, and at the end an
            `Answer`; in others it sends nothing but `BesideFailed`.
        shares: what can be pickled; the first is the first process's.
        receive: takes the first one's messages.
        stopping: whether the first one is to be asked to stop, on which all have to agree among themselves.
        grace: seconds in which the first one can still answer once another one has failed.
    """
    children = {Child(work, share): rank for rank, share in enumerate(shares)}
    first, running = next(iter(children)), list(children)
    stopped, until = False, float("inf")
    answer: Answer | None = None
    failure: tuple[str, str] | None = None
    try:
        while running and time.monotonic() < until:
            if stopping() and not stopped:
                stopped = True
                first.stop()
            for child, message in received(running, POLL):
                name = f"process {children[child]}" if len(shares) > 1 else "the process"
                match message:
                    case Answer() if child is first:
                        answer, until = message, time.monotonic() + FAREWELL
                    case BesideFailed(text):
                        failure, until = (name, text), min(until, time.monotonic() + grace)
                    case Ended(how):
                        running.remove(child)
                        if answer and child is first:
                            return answer
                        if not (answer or failure) and (child.process.exitcode or len(shares) == 1):
                            return Lost(name, how, False, stopped)
                    case _ if child is first:
                        receive(message)
    finally:
        for child in children:
            child.end()
    return answer or Lost(*(failure or ("they", "lost each other")), bool(failure), stopped)
