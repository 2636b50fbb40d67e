"""What a plan will cost before it is run: arithmetic per cell, and hours on this device after a short calibration."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from kd_methods.errors import UserError

from .cell import Cell
from .plan import Plan
from .profiling import Bench, endless
from .spec import steps_per_epoch
from .tasks import TaskData, get_task

SMALL_BATCH = 4
"""Arithmetic is counted on a small batch and scaled: convolutions and products grow with it."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one training step: the pass that a group shares, and the cell's own part."""

    teacher: float
    own: float


@dataclass(frozen=True)
class Estimate:
    """Training operations of each planned cell by key, and the seconds that the cells still to run will take."""

    operations: dict[str, float]
    seconds: float


def estimate(plan: Plan, todo: set[str], data_root: Path, device: torch.device) -> Estimate:
    """Count a step of every kind of cell, and time one of each pair.

    Args:
        plan: what would be run.
        todo: keys of the cells that the store does not have.
        data_root, device: where the calibration runs.
    """
    protocol = plan.protocol
    task = get_task(protocol.task)
    small = protocol.model_copy(update={"batch_size": SMALL_BATCH})
    small_data = task.open(data_root, small, device)
    data = task.open(data_root, protocol, device)
    steps = protocol.epochs * steps_per_epoch(task.samples(data_root), protocol)
    scale = protocol.batch_size / SMALL_BATCH

    longer: dict[str, float] = {}
    work: dict[str, Work] = {}
    rates: dict[tuple[str, str], float] = {}
    operations: dict[str, float] = {}
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in {cell.key: cell for cell in [*plan.training, *plan.cells.values()]}.values():
        kind = _kind(cell)
        if kind not in work:
            try:
                bench = Bench(cell, small, small_data)
            except UserError:  # the method is not for this pair: a cell that costs nothing
                work[kind], longer[kind] = Work(0.0, 0.0), 1.0
            else:
                work[kind] = _count(bench, small_data, scale)
                # A step of a first phase costs about as much as one of the training proper.
                longer[kind] = (protocol.epochs + 1 - bench.member.first_epoch) / protocol.epochs
        operations[cell.key] = steps * longer[kind] * (work[kind].teacher + work[kind].own)
        if cell.key in todo and operations[cell.key]:
            groups[cell.group()].append(cell)

    seconds = 0.0
    for members in groups.values():
        pair = (members[0].teacher.network if members[0].teacher else "", members[0].student)
        if pair not in rates:
            timed = Bench(members[0], protocol, data).seconds(warm_up=1, timed=3)
            counted = work[_kind(members[0])]
            rates[pair] = timed / (counted.teacher + counted.own)
        kinds = [_kind(cell) for cell in members]
        own = sum(work[kind].own * longer[kind] for kind in kinds)
        seconds += steps * rates[pair] * (max(work[kind].teacher * longer[kind] for kind in kinds) + own)
    return Estimate(operations, seconds)


def _kind(cell: Cell) -> str:
    """Cells that differ in their seed alone cost the same."""
    return cell.__class__(**{**cell.__dict__, "seed": 0}).key


def _conv_backward_flops(
    grad_shape: Sequence[int], x_shape: Sequence[int], w_shape: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Both products of a convolution's backward pass, if wanted; torch's own count leaves out the groups."""
    transposed, output_mask = rest[4], rest[7]
    spatial = (x_shape if transposed else grad_shape)[2:]
    forward = 2 * math.prod(w_shape) * math.prod(spatial) * x_shape[0]
    return forward * (output_mask[0] + output_mask[1])


_CORRECTED = {torch.ops.aten.convolution_backward: _conv_backward_flops}


def _count(bench: Bench, data: TaskData, scale: float) -> Work:
    batch = next(endless(data))
    with FlopCounterMode(display=False, custom_mapping=_CORRECTED) as counter:
        bench.teach(batch)
    shared = counter.get_total_flops()
    with FlopCounterMode(display=False, custom_mapping=_CORRECTED) as counter:
        bench.step()
    return Work(shared * scale, (counter.get_total_flops() - shared) * scale)
