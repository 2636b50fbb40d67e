"""Tasks by name: data, augmentation and metric."""

from __future__ import annotations

from kd_methods.errors import UserError, unknown

from ..detection import coco, shapes
from . import cifar, digits, folder, glue, grammar, imagenet, synthetic, tiny_imagenet
from .base import Task, TaskBatch, TaskData

__all__ = ["Task", "TaskBatch", "TaskData", "get_task", "register_task", "task_names"]

_tasks: dict[str, Task] = {}


def register_task(task: Task) -> None:
    """Make a task available by its name.

    Raises:
        UserError: another task already has that name.
    """
    if task.name in _tasks:
        raise UserError(f"a task called '{task.name}' is registered already; give yours another name")
    _tasks[task.name] = task


def task_names() -> list[str]:
    """All registered tasks."""
    return list(_tasks)


def get_task(name: str) -> Task:
    """A task by name; ``folder:PATH`` is any folder of images.

    Raises:
        UserError: no such task.
    """
    if name.startswith("folder:"):
        return folder.task(name.removeprefix("folder:"))
    if name not in _tasks:
        raise unknown("task", name, _tasks)
    return _tasks[name]


_every: tuple[Task, ...] = (
    digits.TASK,
    digits.LARGE,
    *cifar.TASKS,
    tiny_imagenet.TASK,
    imagenet.TASK,
    synthetic.TASK,
    grammar.TASK,
    *glue.TASKS,
    shapes.TASK,
    coco.TASK,
)
for _task in _every:
    register_task(_task)
