"""Tasks by name: data, augmentation and metric.

Each file of ``data_sets/`` with ``TASKS`` brings some, each with ``TASK_SOURCES`` all those of a form of name.
"""

from __future__ import annotations

from ..common.registry import Registry
from .base import NoData, Task, TaskBatch, TaskData, TaskSource

__all__ = [
    "NoData", "Task", "TaskBatch", "TaskData", "TaskSource", "get_task", "register_task", "register_task_source",
    "task_names",
]  # fmt: skip

TASKS: Registry[Task] = Registry("task", f"{__name__}.data_sets", "TASKS")
TASK_SOURCES: Registry[TaskSource] = Registry("task source", TASKS.package, "TASK_SOURCES")


def register_task(task: Task) -> None:
    """Make a task available by its name.

    Raises:
        UserError: another task already has that name.
    """
    TASKS.register(task)


def register_task_source(source: TaskSource) -> None:
    """Make all tasks of a form of name available.

    Raises:
        UserError: another source already has that name.
    """
    TASK_SOURCES.register(source)


def task_names() -> list[str]:
    """All registered tasks."""
    return list(TASKS.mapping())


def get_task(name: str) -> Task:
    """A task by name, or one of a source: ``folder:PATH`` is any folder of images, its ``name`` has the absolute path.

    Raises:
        UserError: no such task.
    """
    source, colon, rest = name.partition(":")
    if colon and source in TASK_SOURCES.mapping():
        return TASK_SOURCES.get(source).task(rest)
    return TASKS.get(name)
