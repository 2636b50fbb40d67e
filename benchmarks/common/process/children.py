"""Child processes that say what they do, and end with their parent. Imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, cast

from kd_methods.errors import UserError

from ..console import patient_streams

Send = Callable[[Any], None]
"""Hands a message, anything that can be pickled, to the parent."""


def check_started_once() -> None:
    """Raise UserError where torchrun, or what sets its variables, has started a command as several processes."""
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1" and {"RANK", "MASTER_ADDR"} <= os.environ.keys():
        raise UserError(
            f"RANK and WORLD_SIZE, torchrun's variables, say that this is one of {count} processes: run the command "
            f"once, without them, with --processes {count}; several machines share a table by --shard I/N"
        )


class Child:
    """A process that calls a function, and whose messages can be received until it ends.

    It is forked from a server that imports torch once and never computes, so that it starts at once with fresh state.
    SIGTERM asks it to stop, Ctrl-C is left to the parent, and it ends when the parent does. It may have children.

    Args:
        work: ``(send, *arguments)``, a function of a module.
        arguments: what can be pickled.
    """

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        self._receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_enter, args=(work, sender, arguments))
        self.process.start()
        sender.close()

    def answer(self) -> Any:
        """Its only message, when it has ended; `Ended` where there is none."""
        try:
            ((_, message),) = received([self], None)
            return message
        finally:
            self.process.join()

    def stop(self) -> None:
        """Ask it to stop."""
        self.process.terminate()

    def end(self) -> None:
        """End it now, if it has not ended, and free what belongs to it."""
        self.process.kill()
        self.process.join()
        self._receiver.close()


class Ended(NamedTuple):
    """The last message of a process: how it ended, in words."""

    how: str


def received(children: Sequence[Child], seconds: float | None) -> list[tuple[Child, Any]]:
    """The next message of each of the children that sent one within some seconds; of one that is gone, `Ended`.

    ``None``: wait for one.
    """
    waiting: dict[Connection, Child] = {child._receiver: child for child in children}
    messages: list[tuple[Child, Any]] = []
    for ready in wait(list(waiting), timeout=seconds):
        child = waiting[cast(Connection, ready)]
        try:
            messages.append((child, child._receiver.recv()))
        except (EOFError, OSError):
            child.process.join()
            messages.append((child, Ended(_how(child.process.exitcode))))
    return messages


def preload(*modules: str) -> None:
    """Let the server import what takes seconds and starts no thread, beside what this process goes on with.

    It ignores Ctrl-C from its start on; by default it does only when it has imported all.

    Raises:
        UserError: it cannot begin where temporary files are.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # the server starts it, and it would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the server inherits
    try:
        forkserver.ensure_running()
    except OSError as error:  # "AF_UNIX path too long", no room
        raise UserError(
            f"no process can begin, for want of a socket in {tempfile.gettempdir()}: {error}; set TMPDIR"
        ) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _enter(work: Callable[..., None], sender: Connection, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with patient_streams():
        work(sender.send, *arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"
