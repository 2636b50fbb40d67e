"""Jobs: what is trained together, how this process runs them one by one, and how groups are shared among several."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ...common.events import Event, Watcher
from ...common.process.children import Ended
from ...common.workspace import Workspace
from ...config.protocol import Protocol
from ...store.cell import Cell, TeacherRef, grouped
from ...tasks import TaskData, get_task
from ...teachers.zoo import Zoo
from .. import engines
from ..engines import Context
from ..engines.context import opened


@dataclass(frozen=True, eq=False)
class Job:
    """Cells of one group, or a part of them. It can be pickled.

    protocol    their recipe, on their task
    similarity  whether students are compared with their teacher after every epoch
    """

    cells: tuple[Cell, ...]
    protocol: Protocol
    similarity: bool = False

    @property
    def teachers(self) -> set[str]:
        """Keys of the cells that train its teachers."""
        return set().union(*(cell.trained_first for cell in self.cells))

    def only(self, cells: Iterable[Cell]) -> Job:
        return replace(self, cells=tuple(cells))


class Finished(NamedTuple):
    """The job's last message: every cell has ended in one way or another, or what ended the whole job."""

    error: BaseException | None = None


Message = Event | Finished | Ended
"""What arrives of a job: what happens to its cells, then its end, or that of the process it was in."""


@dataclass(frozen=True)
class Shard:
    """The part of a plan that one of several processes computes, which know of each other by the store alone."""

    index: int = 1
    count: int = 1

    def of(self, training: Sequence[Cell], cells: Sequence[Cell]) -> list[Cell]:
        """Every ``count``-th group of ``cells``, after those of ``training``, some of them, that train its teachers.

        A teacher of several shards is trained by the first that comes to it; the others wait for it.
        """
        if self.count == 1:
            return list(cells)
        first = {cell.key for cell in training}
        groups = list(dict.fromkeys(cell.group() for cell in cells if cell.key not in first))
        mine = set(groups[self.index - 1 :: self.count])
        chosen = [cell for cell in cells if cell.key not in first and cell.group() in mine]
        needed = set().union(*(cell.trained_first for cell in chosen))
        return [*(cell for cell in training if cell.key in needed), *chosen]


WHOLE = Shard()
"""All of a plan."""


def run(job: Job, workspace: Workspace, watcher: Watcher, stopping: Callable[[], bool], data: TaskData) -> None:
    """Train the cells of a job that the store does not have; ``data`` are those of its task.

    Raises:
        Interrupted: ``stopping`` said so.
    """
    task, zoo = get_task(job.protocol.task), Zoo(workspace.checkpoints)

    def weights(ref: TeacherRef) -> Path:
        return zoo.path(zoo.get(ref.entry))

    context = Context(workspace, job.protocol, data, weights, watcher, stopping, similarity=job.similarity)
    engines.of(task, job.protocol.processes).train(job.cells, context)


class Here:
    """This process: one job after another. What ends a job is raised where it is started."""

    slots = 1

    def __init__(self, workspace: Workspace, watcher: Watcher, stopping: Callable[[], bool]) -> None:
        self._workspace, self._watcher, self._stopping = workspace, watcher, stopping
        self._data: TaskData | None = None  # of the one protocol that all jobs have
        self._ended: list[tuple[Job, Message]] = []

    def start(self, job: Job) -> None:
        self._data = self._data or opened(job.cells, job.protocol, self._workspace)
        run(job, self._workspace, self._watcher, self._stopping, self._data)
        self._ended.append((job, Finished()))

    def messages(self, seconds: float) -> list[tuple[Job, Message]]:
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def divided(cells: Sequence[Cell], slots: int) -> list[tuple[Cell, ...]]:
    """Groups of cells, divided so far that ``slots`` of them can be trained at a time in the least time.

    A group shares its teacher's pass, which takes about as long as a cell of it: dividing it costs one more, and does
    not change a result. The order is that of the cells.
    """
    groups = grouped(cells)
    largest = max(map(len, groups), default=1)
    ways = ([job for group in groups for job in _even(group, size)] for size in range(largest, 0, -1))
    # Of the ways that take the same time the one with the largest jobs.
    return min(ways, key=lambda jobs: span([len(job) + bool(job[0].teacher) for job in jobs], slots))


def _even(group: Sequence[Cell], largest: int) -> list[tuple[Cell, ...]]:
    """A group in as few jobs as can be, none larger than ``largest``, of nearly one size."""
    count = -(-len(group) // largest)
    ends = [len(group) * job // count for job in range(count + 1)]
    return [tuple(group[start:end]) for start, end in itertools.pairwise(ends)]


def span(times: Iterable[float], slots: int) -> float:
    """When the last of some jobs ends, in the unit of their ``times``; each is taken by the slot that is free first."""
    free = [0.0] * slots
    for time in times:
        heapq.heapreplace(free, free[0] + time)
    return max(free)
