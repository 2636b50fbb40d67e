"""What a plan will cost before it is run: arithmetic per cell, and hours on this device after a short calibration."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kd_methods.errors import UserError

from ..common.workspace import Workspace
from ..config.protocol import Protocol, steps_per_epoch
from ..cost.profiling import Bench
from ..networks import NetworkView
from ..store.cell import Cell
from ..tasks import get_task
from . import engines
from .plan import Plan

SMALL_BATCH = 4
"""Arithmetic is counted on a small batch and scaled: convolutions and products grow with it."""

TIMED_OPERATIONS = 2.5e11
"""On a CPU, steps with more of them (a few seconds) are timed on a part of the batch."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations of a cell: the pass that a group shares, its own part, and one epoch of both."""

    teacher: float
    own: float
    epoch: float


@dataclass(frozen=True)
class Estimate:
    """Training operations by key, and the seconds that the cells still to run will take.

    Cells of a kind of which all are in the store are not counted.
    """

    operations: dict[str, float]
    seconds: float


def estimate(plan: Plan, todo: Mapping[str, float], workspace: Workspace) -> Estimate:
    """Count a step of every kind of cell that is still to run, and time one of each pair.

    Args:
        plan: what would be run.
        todo: the cells that the store does not have: which share of their epochs is left to compute, by key.
        workspace: where the calibration runs.
    """
    cells = plan.every_cell()
    operations: dict[str, float] = {}
    seconds = 0.0
    for task in plan.tasks:
        if not engines.of(get_task(task)).counted:
            continue
        for protocol, stages in plan.stages([cell for cell in cells if cell.task == task]):
            on_task = [cell for stage in stages for cell in stage]
            part = _on_one_task(on_task, protocol.on_task(task), todo, workspace)
            operations |= part.operations
            seconds += part.seconds
    return Estimate(operations, seconds)


def _on_one_task(
    cells: Sequence[Cell], protocol: Protocol, todo: Mapping[str, float], workspace: Workspace
) -> Estimate:
    task, data_root, device = get_task(protocol.task), workspace.data_root, workspace.device

    @functools.cache
    def bench_of(batch_size: int) -> Callable[[Cell], Bench]:
        sized = _sized(protocol, batch_size)
        data = task.open(data_root, sized, device)

        @functools.cache
        def teacher(network: str) -> NetworkView:
            return data.build(network).requires_grad_(False).eval()

        return lambda cell: Bench([cell], sized, data, teacher=teacher(cell.teacher.network) if cell.teacher else None)

    steps = steps_per_epoch(task.samples(data_root), protocol)
    scale = protocol.batch_size / SMALL_BATCH

    work: dict[str, Work] = {}
    rates: dict[tuple[str, str], float] = {}
    operations: dict[str, float] = {}
    groups: dict[str, list[Cell]] = defaultdict(list)
    kinds = {cell.key: _kind(cell) for cell in cells}
    needed = {kind for key, kind in kinds.items() if key in todo}
    for cell in cells:
        kind = kinds[cell.key]
        if kind not in needed:
            continue
        if kind not in work:
            try:
                work[kind] = _epochs(bench_of(SMALL_BATCH)(cell), scale * steps)
            except UserError:  # the method is not for this pair: a cell that costs nothing
                work[kind] = Work(0.0, 0.0, 0.0)
        operations[cell.key] = work[kind].teacher + work[kind].own
        if cell.key in todo and operations[cell.key]:
            groups[cell.group()].append(cell)

    seconds = 0.0
    for members in groups.values():
        pair = (members[0].teacher.network if members[0].teacher else "", members[0].student)
        if pair not in rates:
            epoch = work[kinds[members[0].key]].epoch
            share = TIMED_OPERATIONS * steps / epoch if device.type == "cpu" else 1.0
            timed = min(protocol.batch_size, max(SMALL_BATCH, int(protocol.batch_size * share)))
            step = bench_of(timed)(members[0]).seconds(warm_up=1, timed=3)
            rates[pair] = steps * step * protocol.batch_size / timed / epoch
        counts = [(work[kinds[cell.key]], todo[cell.key]) for cell in members]
        seconds += rates[pair] * (max(c.teacher * left for c, left in counts) + sum(c.own * left for c, left in counts))
    return Estimate(operations, seconds)


def _sized(protocol: Protocol, batch_size: int) -> Protocol:
    """A protocol for few steps with another batch, in one part, on images that are decoded in this process."""
    crops = protocol.crops and protocol.crops.model_copy(update={"workers": 0})
    return protocol.model_copy(update={"batch_size": batch_size, "accumulate": 1, "crops": crops})


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
        total = [sum(parts) for parts in zip(total, counted[phase], strict=True)]
    return Work(total[0] * scale, total[1] * scale, (teacher + student) * scale)
