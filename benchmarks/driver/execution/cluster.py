"""Jobs as tasks of Ray, on all the machines of a cluster.

The machines share the folders of code, data, checkpoints and results. A task that is lost with its machine is reported
as lost; the scheduler lets its cells go on elsewhere, from their checkpoints.
"""

from __future__ import annotations

import logging
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kd_methods.errors import UserError

from ...common.places import PACKAGE
from ...common.process.children import Ended
from ...common.process.signals import stop_signals
from ...common.workspace import Workspace
from .jobs import Finished, Job, Message
from .relay import work


class Cluster:
    """A pool of a Ray cluster's CPUs or GPUs.

    Args:
        address: of the cluster (``auto``, ``HOST:PORT``); empty: Ray is started on this machine alone.
        workspace: the tasks', with the kind of device that they use.
        per_gpu: how many jobs share a GPU.
        threads: of each job on a CPU, and how many CPUs it takes.
        workers: at most so many jobs at a time; None: as many as the cluster has room for.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self, address: str, workspace: Workspace, per_gpu: int, threads: int, workers: int | None = None
    ) -> None:
        try:
            import ray
            from ray.util.queue import Queue
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
        except ImportError:
            raise UserError("--executor ray needs Ray, the extra [cluster]: pip install 'ray>=2.40'") from None
        self._ray, self._workers, self._threads = ray, workers, threads
        self._gpu = 1 / per_gpu if workspace.device.type == "cuda" else 0
        self._workspace = replace(workspace.portable().absolute(), device=torch.device(workspace.device.type))
        self._started = not ray.is_initialized()
        if self._started:
            _check_answers(address)
            try:
                ray.init(
                    address or "local", log_to_driver=False, include_dashboard=False if not address else None,
                    logging_level=logging.ERROR, runtime_env={"env_vars": {"PYTHONPATH": str(PACKAGE.parent)}},
                )  # fmt: skip
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"--address {address}: no Ray cluster answers ({' '.join(str(error).split())})"
                ) from None
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._messages = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._jobs: dict[Any, Job] = {}
        self._finished: set[int] = set()
        self._numbers: dict[int, Any] = {}
        self._count = 0

    @property
    def slots(self) -> int:
        """For how many jobs the cluster, as it is now, has room."""
        room = self._ray.cluster_resources()
        count = int(room.get("GPU", 0) / self._gpu) if self._gpu else int(room.get("CPU", 0) // self._threads)
        return max(1, min(count, self._workers or count))

    def start(self, job: Job) -> None:
        # A task is not retried by Ray: cells go on, and what goes on is not the whole job. It has a process of its own,
        # into which plugins are loaded once.
        remote = self._ray.remote(max_calls=1)(_task)
        task = remote.options(num_cpus=self._threads, num_gpus=self._gpu, max_retries=0)
        number, self._count = self._count, self._count + 1
        ref = task.remote(self._messages, number, job, self._workspace, self._threads)
        self._jobs[ref], self._numbers[number] = job, ref

    def messages(self, seconds: float) -> list[tuple[Job, Message]]:
        ended, _ = self._ray.wait(list(self._jobs), num_returns=1, timeout=seconds)
        messages = []
        for number, message in self._messages.get_nowait_batch(self._messages.qsize()):
            if (ref := self._numbers.get(number)) not in self._jobs:
                continue
            messages.append((self._jobs[ref], message))
            if isinstance(message, Finished):
                self._forget(ref)
        for ref in ended:
            if ref in self._jobs:
                messages.append((self._jobs[ref], Ended(self._how(ref))))
                self._forget(ref)
        return messages

    def _forget(self, ref: Any) -> None:
        del self._jobs[ref]
        self._numbers = {number: other for number, other in self._numbers.items() if other is not ref}

    def _how(self, ref: Any) -> str:
        try:
            self._ray.get(ref)
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        return "it ended without a word"

    def stop(self) -> None:
        for ref in self._jobs:
            self._ray.cancel(ref)  # a request: the task gets a KeyboardInterrupt's signal

    def close(self) -> None:
        for ref in self._jobs:
            self._ray.cancel(ref, force=True)
        self._messages.shutdown(force=True)
        if self._started:
            self._ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes to reach a cluster that is not there.

    Raises:
        UserError: an address HOST:PORT at which nobody answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise UserError(f"--address {address}: no Ray cluster answers ({error.strerror or error})") from None


def _task(messages: Any, number: int, job: Job, workspace: Workspace, threads: int) -> None:
    """In a process of the cluster."""

    def send(message: Any) -> None:
        messages.put((number, message))

    if not Path(workspace.output).is_dir():
        send(
            Finished(UserError(f"{workspace.output} is not on all machines of the cluster: they share one file system"))
        )
        return
    torch.set_num_threads(threads)
    with stop_signals(signal.SIGINT) as stopping:
        work(send, job, workspace, stopping)
