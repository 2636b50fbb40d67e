"""Where groups run. Each file here with ``EXECUTORS`` brings some; detection's comes as an extension."""

from __future__ import annotations

from ...common.registry import Registry
from ...tasks import Task
from .executor import Executor, Watcher

__all__ = ["EXECUTORS", "Executor", "Watcher", "of", "register_executor"]

EXECUTORS: Registry[Executor] = Registry("executor", __name__, "EXECUTORS")


def register_executor(executor: Executor) -> None:
    """Let an executor run the cells of what it reads, instead of the one that did before.

    Raises:
        UserError: another one already has that name.
    """
    EXECUTORS.register(executor)


def of(task: Task) -> Executor:
    """The executor of a task's cells: the last one that reads what its networks read."""
    return [executor for executor in EXECUTORS.mapping().values() if task.modality in executor.reads][-1]
