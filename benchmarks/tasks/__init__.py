"""Tasks by name: data, augmentation and metric. Each file of ``data_sets/`` with ``TASKS`` brings some."""

from __future__ import annotations

from ..common.registry import Registry
from .base import NoData, Task, TaskBatch, TaskData

__all__ = ["NoData", "Task", "TaskBatch", "TaskData", "get_task", "register_task", "task_names"]

TASKS: Registry[Task] = Registry("task", f"{__name__}.data_sets", "TASKS")


def register_task(task: Task) -> None:
    """Make a task available by its name.

    Raises:
        UserError: another task already has that name.
    """
    TASKS.register(task)


def task_names() -> list[str]:
    """All registered tasks."""
    return list(TASKS.mapping())


def get_task(name: str) -> Task:
    """A task by name; ``folder:PATH`` is any folder of images, whose ``name`` has its absolute path.

    Raises:
        UserError: no such task.
    """
    if name.startswith("folder:"):
        from .data_sets import folder

        return folder.task(name.removeprefix("folder:"))
    return TASKS.get(name)
