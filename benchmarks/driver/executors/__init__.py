"""Where groups run. Each file here with ``EXECUTORS`` brings some; detection's comes as an extension."""

from __future__ import annotations

from ...common.registry import Registry
from ...tasks import Task
from .executor import Executor

__all__ = ["EXECUTORS", "Executor", "of"]

EXECUTORS: Registry[Executor] = Registry("executor", __name__, "EXECUTORS")


def of(task: Task) -> Executor:
    """The executor of a task's cells."""
    return next(executor for executor in EXECUTORS.mapping().values() if task.modality in executor.reads)
