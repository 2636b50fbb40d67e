"""How cells are trained. Each file here with ``ENGINES`` brings some; detection's comes as an extension."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...common.registry import Registry
from ...common.workspace import Workspace
from ...config.protocol import Protocol
from ...report.model import CostEntry
from ...store.cell import Cell
from ...tasks import Task, get_task
from ...teachers.verification import Measure
from ...teachers.zoo import Teacher
from .context import Context
from .engine import Engine, Estimated

__all__ = ["ENGINES", "Context", "Engine", "Estimated", "cost_by", "measured_by", "of", "register_engine"]

ENGINES: Registry[Engine] = Registry("engine", __name__, "ENGINES")


def register_engine(engine: Engine) -> None:
    """Let an engine run the cells of what it reads, instead of the one that did before.

    Raises:
        UserError: another one already has that name.
    """
    ENGINES.register(engine)


def of(task: Task, processes: int = 1) -> Engine:
    """The engine of a task's cells, each of so many processes: the last one that reads what its networks read."""
    reading = [engine for engine in ENGINES.mapping().values() if task.modality in engine.reads]
    return [engine for engine in reading if (engine.divides if processes > 1 else engine.alone)][-1]


def measured_by(workspace: Workspace) -> Measure:
    """What measures a teacher's file: the engine of its task."""

    def measure(entry: Teacher, protocol: Protocol) -> Mapping[str, float]:
        return of(get_task(entry.task)).accuracy(entry, protocol, workspace)

    return measure


def cost_by(protocol: Protocol, workspace: Workspace) -> Callable[[Cell], CostEntry]:
    """What takes the cost of a cell under a protocol: the engine of its task."""

    def cost(cell: Cell) -> CostEntry:
        return of(get_task(cell.task)).cost(cell, protocol.on_task(cell.task), workspace)

    return cost
