"""Jobs: what is trained together, here or in another process, and how groups are shared among several of them."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..common.workspace import Workspace
from ..config.protocol import Protocol
from ..store.cell import Cell, TeacherRef
from ..tasks import TaskData, get_task
from ..teachers.zoo import Zoo
from . import engines
from .engines import Watcher
from .engines.local import Context


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
        return {ref.cell for cell in self.cells for ref in (cell.teacher, cell.start) if ref and ref.cell}

    def only(self, cells: Iterable[Cell]) -> Job:
        return replace(self, cells=tuple(cells))


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
        needed = {ref.cell for cell in chosen for ref in (cell.teacher, cell.start) if ref}
        return [*(cell for cell in training if cell.key in needed), *chosen]


WHOLE = Shard()
"""All of a plan."""


def run(
    job: Job, workspace: Workspace, watcher: Watcher, stopping: Callable[[], bool], data: TaskData | None = None
) -> None:
    """Train the cells of a job that the store does not have; ``data`` are those of its task, where they are open.

    Raises:
        Interrupted: ``stopping`` said so.
    """
    task, zoo = get_task(job.protocol.task), Zoo(workspace.checkpoints)

    def weights(ref: TeacherRef) -> Path:
        return zoo.path(zoo.get(ref.entry))

    data = data or task.open(workspace.data_root, job.protocol, workspace.device)
    context = Context(workspace, job.protocol, data, weights, watcher, stopping, similarity=job.similarity)
    engines.of(task).train(job.cells, context)


def divided(cells: Sequence[Cell], slots: int) -> list[tuple[Cell, ...]]:
    """Groups of cells, divided so far that ``slots`` of them can be trained at a time in the least time.

    A group shares its teacher's pass, which takes about as long as a cell of it: dividing it costs one more, and does
    not change a result. The order is that of the cells.
    """
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.group()].append(cell)

    def parts(largest: int) -> list[tuple[Cell, ...]]:
        return [part for group in groups.values() for part in _even(group, largest)]

    sizes = {len(group) for group in groups.values()}
    # Of the ways that take the same time the one with the largest parts.
    return min((parts(largest) for largest in range(max(sizes, default=1), 0, -1)), key=lambda p: _time(p, slots))


def _even(group: Sequence[Cell], largest: int) -> list[tuple[Cell, ...]]:
    """A group in as few parts as can be, none larger than ``largest``, of nearly one size."""
    count = -(-len(group) // largest)
    ends = [len(group) * part // count for part in range(count + 1)]
    return [tuple(group[start:end]) for start, end in itertools.pairwise(ends)]


def _time(parts: Sequence[tuple[Cell, ...]], slots: int) -> int:
    """In passes of a cell, when the last part ends, each being taken by the slot that is free first."""
    free = [0] * max(1, slots)
    for part in parts:
        heapq.heapreplace(free, free[0] + len(part) + bool(part[0].teacher))
    return max(free)
