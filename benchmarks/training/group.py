"""What the cells of a group have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kd_methods.contract import Network

from ..config.protocol import Protocol
from ..tasks import TaskData
from .shared_teacher import SharedTeacher
from .teacher_pass import StoredTeacherPass


@dataclass(frozen=True)
class Group:
    """Cells with one teacher, task, protocol and seed are trained side by side on the same batches.

    protocol      the recipe
    data          the task's data on the device
    teacher       the frozen teacher, for the cells that have one
    teacher_pass  what methods are prepared from; without one they keep their stand-ins
    observe       measures each student after every epoch; what it returns is recorded
    """

    protocol: Protocol
    data: TaskData
    teacher: SharedTeacher | None = None
    teacher_pass: StoredTeacherPass | None = None
    observe: Callable[[Network], dict[str, Any]] | None = None
