"""Jobs in worker processes of this machine."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ...common.process import children
from ...common.process.signals import stop_signals
from ...common.workspace import Workspace
from .jobs import Finished, Job, Message
from .relay import work


class Workers:
    """Processes, one for each job that runs, on the devices in turn.

    Args:
        devices: one for each of the jobs that run at a time.
        threads: of each process.
        workspace: theirs, but for the device.
    """

    def __init__(self, devices: list[torch.device], threads: int, workspace: Workspace) -> None:
        warm_up()
        self._free, self._threads, self._workspace = list(devices), threads, workspace.portable()
        self._running: dict[children.Child, tuple[Job, torch.device]] = {}
        self.slots = len(devices)

    def start(self, job: Job) -> None:
        device = self._free.pop(0)
        workspace = replace(self._workspace, device=device)
        self._running[children.Child(_work, job, workspace, self._threads)] = job, device

    def messages(self, seconds: float) -> list[tuple[Job, Message]]:
        messages = []
        for child, message in children.received(list(self._running), seconds):
            job, device = self._running[child]
            if isinstance(message, Finished | children.Ended):
                del self._running[child]
                self._free.append(device)
                child.process.join()
            messages.append((job, message))
        return messages

    def stop(self) -> None:
        for child in self._running:
            child.stop()

    def close(self) -> None:
        for child in self._running:
            child.end()
        self._running.clear()


def warm_up() -> None:
    """Let what workers are forked from import what they need, while this process goes on."""
    children.preload(f"{__package__}.relay", "sklearn.datasets")


def _work(send: Callable[[Any], None], job: Job, workspace: Workspace, threads: int) -> None:
    """In the process."""
    torch.set_num_threads(threads)
    with stop_signals(signal.SIGTERM, again=False) as stopping:
        work(send, job, workspace, stopping)
