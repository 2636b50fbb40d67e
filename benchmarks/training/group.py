"""What the cells of a group have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kd_methods.contract import Network
from kd_methods.errors import UserError

from ..config.protocol import Protocol
from ..tasks import TaskData
from .replicas.replica import ALONE, Replica
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
    replica       this process among those that train the group together

    Raises:
        UserError: they are not as many as the protocol shares each batch among.
    """

    protocol: Protocol
    data: TaskData
    teacher: SharedTeacher | None = None
    teacher_pass: StoredTeacherPass | None = None
    observe: Callable[[Network], dict[str, Any]] | None = None
    replica: Replica = ALONE

    def __post_init__(self) -> None:
        wanted = self.protocol.world_size
        if wanted != self.replica.count:
            raise UserError(
                f"a cell of which {wanted} processes share the batches cannot be trained by {self.replica.count};"
                f" --processes {wanted} goes on with it, another number is another cell"
            )
