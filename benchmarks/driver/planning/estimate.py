"""What a plan will cost before it is run: operations of each cell, and hours on this device or on another one."""

from __future__ import annotations

from collections.abc import Mapping

from ...common.workspace import Workspace
from ...cost.cards import Speed
from ...store.cell import Cell
from ...tasks import get_task
from ...tasks.stated import Stated
from .. import engines
from ..engines import Estimated
from ..execution.jobs import divided, span
from .plan import Plan


class Estimate:
    """Counts a step of every kind of cell that is still to run, when it is asked for, and times one of each pair.

    Cells of a kind of which all are in the store are not counted.

    Args:
        plan: what would be run.
        todo: the cells that the store does not have: which share of their epochs is left to compute, by key.
        workspace: where the calibration runs.
        speed: that of another device, on which nothing is timed.
    """

    def __init__(self, plan: Plan, todo: Mapping[str, float], workspace: Workspace, speed: Speed | None = None) -> None:
        self._by_cell: dict[str, Estimated] = {}
        self._stages: list[list[Cell]] = []
        self._unknown = False
        cells = plan.every_cell()
        for task in plan.tasks:
            source = plan.sources[task]
            estimate = engines.of(get_task(task)).estimate
            if not estimate or (isinstance(source, Stated) and not source.counted):
                self._unknown |= any(cell.task == task and cell.key in todo for cell in cells)
                continue
            for protocol, stages in plan.stages([cell for cell in cells if cell.task == task]):
                on_task = [cell for stage in stages for cell in stage]
                estimated = estimate(on_task, protocol.on_task(task), source, todo, workspace, speed)
                self._by_cell |= dict.fromkeys((cell.key for cell in on_task), estimated)
                self._stages += [[cell for cell in stage if cell.key in todo] for stage in stages]

    def operations(self, cell: Cell) -> float | None:
        """Floating-point operations of a cell's training; 0 of one that is not for its pair, None if not counted."""
        estimated = self._by_cell.get(cell.key)
        return estimated.operations(cell) if estimated else None

    def seconds(self, workers: int = 1) -> float | None:
        """Until all cells that are left are trained, on so many devices; None where it is not known of all.

        Teachers end before students begin, each part of a group is trained where a place is free first.
        """
        if self._unknown:
            return None
        return sum(span(stage, workers) for stage in self.parts(workers))

    def parts(self, workers: int) -> list[list[float]]:
        """Seconds of each group, or part of one, in the stages that end one before the other on so many devices."""
        stages = [divided(stage, workers) for stage in self._stages]
        return [[self._by_cell[job[0].key].seconds(job) for job in stage] for stage in stages]
