"""Where groups run: in this process (``local``), or each cell in a process of its own (``detection``).

An executor has three functions: ``run`` trains cells, ``accuracy`` measures a teacher file, ``cost`` a training step.
"""

from __future__ import annotations

from typing import Any

from ...detection import executor as detection
from ...tasks import Task
from . import local


def of(task: Task) -> Any:
    """The executor of a task's cells."""
    return detection if task.inputs == "detection" else local
