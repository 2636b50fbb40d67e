"""What engines train cells with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_methods.errors import UserError

from ...common.events import Said, Watcher
from ...common.process.settings import settings_restored
from ...common.weights import frozen
from ...common.workspace import Workspace
from ...config.protocol import Protocol
from ...networks import NetworkView
from ...store.cell import Cell, TeacherRef
from ...store.runs import Store
from ...tasks import TaskData, get_task
from ...training.replicas.replica import ALONE, Replica
from ...training.teacher_pass import StoredTeacherPass, identity


def opened(cells: Sequence[Cell], protocol: Protocol, workspace: Workspace) -> TaskData:
    """The data of some cells' task, under their protocol.

    Raises:
        UserError: as the task says, or they are others than those that the cells were planned with.
    """
    task, root = get_task(protocol.task), workspace.data_root
    with settings_restored():
        data = task.open(root, protocol, workspace.device)
        fingerprint = task.fingerprint(root, protocol) if cells else ""
    if any(cell.data != fingerprint for cell in cells):
        raise UserError(
            f"the data of task {task.name} in {root} have changed since the run was planned; the same command plans "
            "anew with them"
        )
    return data


@dataclass(frozen=True)
class Context:
    """What groups need besides their cells.

    workspace     the store's folder, the device, and what engines that work in processes of their own open again
    protocol      the cells' recipe, on their task
    data          what the task opens; engines that work in processes of their own open theirs
    weights       finds the file of a teacher that is no cell of the store
    watcher       follows the training
    stopping      whether to end after the next step
    similarity    whether students are compared with their teacher after every epoch
    save_seconds  from one checkpoint to the next
    replica       this process among those that share the cells' batches
    """

    workspace: Workspace
    protocol: Protocol
    data: TaskData
    weights: Callable[[TeacherRef], Path]
    watcher: Watcher
    stopping: Callable[[], bool] = lambda: False
    similarity: bool = False
    save_seconds: float = 600.0
    replica: Replica = ALONE

    def say(self, line: str) -> None:
        """A line for whoever follows."""
        self.watcher(Said(line))

    @property
    def store(self) -> Store:
        """Where the cells' runs lie."""
        return Store(self.workspace.output)

    def weights_of(self, ref: TeacherRef) -> Path:
        """The file of a teacher."""
        return self.store.run(ref.cell).student(mend=True) if ref.cell else self.weights(ref)

    def teacher(self, ref: TeacherRef) -> NetworkView:
        """The teacher's network with its weights."""
        # Before any method sees it: one may copy a part of it, or run it while it is built.
        with settings_restored():
            return frozen(self.data.build(ref.network), self.weights_of(ref), ref.weights)

    def teacher_pass(self, cell: Cell, network: NetworkView) -> StoredTeacherPass:
        """What the methods of the cell's group are prepared from."""
        assert cell.teacher
        normalisation, depends_on = (cell.teacher.mean, cell.teacher.std), identity(cell, cell.teacher)
        return StoredTeacherPass(
            network, normalisation, self.data, depends_on, self.store.prepared, self.say, self.stopping
        )
