"""How many jobs run at a time, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kd_methods.errors import UserError

from ...common import machine
from ...common.events import Said, Watcher
from ...common.workspace import Workspace
from .cluster import Cluster
from .jobs import Here
from .scheduling import Pool
from .workers import Workers, warm_up

WORKER_BYTES = 2 * 2**30
"""Of main memory, what a worker is expected to need."""


@dataclass(frozen=True)
class Crew:
    """Who trains.

    workers  how many jobs run at a time, where the user says so; None: one for each GPU, or for each core that this
             process may use and has memory for; on a cluster as many as it has room for
    per_gpu  how many share a GPU
    cluster  the address of a Ray cluster; empty: a Ray of this machine; None: no Ray
    """

    workers: int | None = 1
    per_gpu: int = 1
    cluster: str | None = None

    def places(self, device: torch.device, most: int, processes: int = 1) -> list[torch.device]:
        """The devices of jobs on this machine; ``cuda`` without a number stands for all GPUs.

        Args:
            device: the one that was asked for.
            most: how many jobs there can be.
            processes: how many a job has, with a GPU each: the place's and those after it.
        """
        gpus = torch.cuda.device_count() if device.type == "cuda" else 0
        first = range(0, max(gpus - processes, 0) + 1, processes)
        one = [torch.device("cuda", index) for index in first] if gpus and device.index is None else [device]
        on_cpu = min(machine.cores(), machine.main_memory() // WORKER_BYTES) // processes
        usual = len(one) * self.per_gpu if gpus else on_cpu
        count = max(1, min(self.workers or usual, most))
        return [one[index % len(one)] for index in range(count)]

    def prepare(self) -> None:
        """Said before something else is done that takes a while: there will be jobs."""
        if self.workers != 1 and self.cluster is None:
            warm_up()

    def pool(
        self, workspace: Workspace, watcher: Watcher, stopping: Callable[[], bool], most: int, processes: int = 1
    ) -> Pool:
        """Where jobs run, of which there can be ``most``, of so many ``processes`` each.

        Raises:
            UserError: a cluster that is not there, or whose tasks would have several processes.
        """
        if self.cluster is not None:
            if processes > 1:
                raise UserError("--executor ray gives a cell one process; leave --processes out, or the executor")
            pool = Cluster(self.cluster, workspace, self.per_gpu, torch.get_num_threads(), self.workers)
            watcher(Said(f"a Ray cluster with room for {pool.slots} at a time"))
            return pool
        places = self.places(workspace.device, most, processes)
        if len(places) == 1:
            return Here(workspace, watcher, stopping)
        watcher(Said(f"{len(places)} workers on {', '.join(dict.fromkeys(map(str, places)))}"))
        return Workers(places, torch.get_num_threads(), workspace)


ALONE = Crew()
"""One job after another, in this process."""
