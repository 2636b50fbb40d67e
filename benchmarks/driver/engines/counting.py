"""What cells will cost that the training loop trains: operations of their steps, and seconds on a device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...common import machine
from ...common.workspace import Workspace
from ...config.protocol import Protocol, steps_per_epoch
from ...cost.cards import Speed
from ...cost.measuring import Bench, random_teacher
from ...cost.operations import CountedTeacher
from ...store.cell import Cell, TeacherRef
from ...tasks import Task
from ...tasks.stated import Stated
from ...training.failures import of_cell
from ...training.shared_teacher import SharedTeacher

SMALL_BATCH = 4
"""Arithmetic is counted on a small batch and scaled: convolutions and products grow with it."""

TIMED_OPERATIONS = 2.5e10
"""On a CPU, steps with more of them (half a second) are timed on a part of the batch."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a cell: the pass that a group shares, its own part, and one epoch of both."""

    teacher: float
    student: float
    epoch: float


class Counted:
    """Cells of one task under one protocol, estimated from steps of them; see :class:`.engine.Estimated`."""

    def __init__(
        self,
        cells: Sequence[Cell],
        protocol: Protocol,
        source: Task | Stated,
        todo: Mapping[str, float],
        workspace: Workspace,
        speed: Speed | None,
    ) -> None:
        self._source, self._protocol, self._todo, self._where, self._speed = source, protocol, todo, workspace, speed
        self._kinds = {cell.key: _kind(cell) for cell in cells}
        self._needed = {kind for key, kind in self._kinds.items() if key in todo}
        self._work: dict[str, Work] = {}
        self._rates: dict[tuple[str, str], float] = {}
        self._at_once = (
            1.0 if protocol.processes == 1 else at_once(protocol.processes, None if speed else workspace.device)
        )
        self._steps = steps_per_epoch(source.samples(workspace.data_root), protocol)
        self._counting = functools.cache(functools.partial(self._make_bench, CountedTeacher))
        self._timing = functools.cache(functools.partial(self._make_bench, SharedTeacher))

    def operations(self, cell: Cell) -> float | None:
        kind = self._kinds[cell.key]
        if kind not in self._needed:
            return None
        work = self._counted(cell)
        return work.teacher + work.student

    def seconds(self, cells: Sequence[Cell]) -> float:
        """Of a group, or a part of one; of cells that several processes train, each with its own teacher's pass."""
        counted = [cell for cell in cells if self._counted(cell).epoch]
        if not counted:
            return 0.0
        counts = [(self._counted(cell), self._todo[cell.key]) for cell in counted]
        passes = [c.teacher * left for c, left in counts]
        shared = max(passes) if self._protocol.processes == 1 else sum(passes)
        return self._rate(counted[0]) * (shared + sum(c.student * left for c, left in counts)) / self._at_once

    def _counted(self, cell: Cell) -> Work:
        kind, scale = self._kinds[cell.key], self._protocol.batch_size / SMALL_BATCH
        if kind not in self._work:
            try:
                self._work[kind] = _epochs(self._counting(SMALL_BATCH)(cell), scale * self._steps)
            except Exception as error:
                if of_cell(error, building=True) is None:
                    raise
                self._work[kind] = Work(0.0, 0.0, 0.0)  # not for this pair, or wrong: its run says so in time
        return self._work[kind]

    def _rate(self, cell: Cell) -> float:
        """Seconds of one operation on a pair."""
        if self._speed:
            return 1 / self._speed.operations
        pair, epoch = (cell.teacher.network if cell.teacher else "", cell.student), self._counted(cell).epoch
        if pair not in self._rates:
            size = self._protocol.batch_size
            share = TIMED_OPERATIONS * self._steps / epoch if self._where.device.type == "cpu" else 1.0
            timed = min(size, max(SMALL_BATCH, int(size * share)))
            step = self._timing(timed)(cell).seconds(warm_up=1, timed=3)
            self._rates[pair] = self._steps * step * size / timed / epoch
        return self._rates[pair]

    def _make_bench(self, kind: type[SharedTeacher], batch_size: int) -> Callable[[Cell], Bench]:
        sized = _sized(self._protocol, batch_size)
        data = self._source.open(self._where.data_root, sized, self._where.device)

        @functools.cache
        def teacher(ref: TeacherRef) -> SharedTeacher:
            return random_teacher(ref, sized, data, kind)

        return lambda cell: Bench([cell], sized, data, teacher=teacher(cell.teacher) if cell.teacher else None)


def at_once(processes: int, device: torch.device | None) -> float:
    """How much faster processes that share a batch are than one, where what they tell each other costs nothing.

    Each has a device of its own, or on a CPU its part of the threads, one at least; None is another machine's device.
    """
    if device is None or device.type != "cpu":
        return float(processes)
    threads = torch.get_num_threads()
    return max(1.0, min(processes * max(1, threads // processes), machine.cores()) / threads)


def _sized(protocol: Protocol, batch_size: int) -> Protocol:
    """A protocol for few steps with another batch, in one part, on images that are decoded in this process.

    Networks run as without a compiler, which takes longer than these steps.
    """
    crops = protocol.crops and protocol.crops.model_copy(update={"workers": 0})
    alone = protocol.of_one_process()
    return alone.model_copy(update={"batch_size": batch_size, "accumulate": 1, "crops": crops, "compile": False})


def _kind(cell: Cell) -> str:
    """Cells that differ in their seed alone cost the same."""
    return replace(cell, seed=0).key


def _epochs(bench: Bench, scale: float) -> Work:
    """All epochs of a cell, first phases included, of ``scale`` counted steps each."""
    teacher, student = bench.operations()
    total: list[float] = [bench.protocol.epochs * teacher, bench.protocol.epochs * student]
    counted: dict[int, tuple[int, int]] = {}
    for epoch in range(bench.student_run.first_epoch, 1):
        bench.go_to(epoch)
        phase = id(bench.student_run.phase)
        if phase not in counted:
            counted[phase] = bench.operations()
        total = [sum(operations) for operations in zip(total, counted[phase], strict=True)]
    return Work(total[0] * scale, total[1] * scale, (teacher + student) * scale)
