"""Stages of a plan: teachers first, then the students that learn from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import networks
from ..common.console import Outcome
from ..common.signals import stop_signals
from ..common.workspace import Workspace
from ..config.protocol import Protocol
from ..store.cell import Cell, TeacherRef
from ..store.runs import Store
from ..tasks import get_task
from ..teachers.cells import teacher_cell
from ..teachers.zoo import Zoo
from ..training import precision
from . import executors
from .executors import local
from .progress import Reporter


def train(stages: Sequence[Sequence[Cell]], protocol: Protocol, workspace: Workspace, similarity: bool = False) -> None:
    """Train cells of one task stage by stage: a later one may use as teachers what an earlier one trained.

    Args:
        stages: the cells.
        protocol: their recipe, on their task.
        workspace: where.
        similarity: whether students are compared with their teacher after every epoch.
    """
    task, store, zoo = get_task(protocol.task), Store(workspace.output), Zoo(workspace.checkpoints)
    data = task.open(workspace.data_root, protocol, workspace.device)

    def weights(ref: TeacherRef) -> Path:
        return zoo.path(zoo.get(ref.entry))

    runs = [store.run(cell) for stage in stages for cell in stage]
    saved = {run.path: run.saved_epochs for run in runs}
    with (
        Reporter(len(runs), protocol, task.samples(workspace.data_root), task.metric, saved) as report,
        stop_signals() as stopping,
    ):
        context = local.Context(
            store,
            protocol,
            data,
            workspace.device,
            weights,
            report,
            report.say,
            stopping,
            left_out=report.left_out,
            similarity=similarity,
            data_root=workspace.data_root,
            plugin_files=workspace.plugin_files,
        )
        for stage in stages:
            # A cell whose teacher could not be trained is left out; the others go on.
            taught = [c for c in stage if not (c.teacher and c.teacher.cell) or _is_done(store, c.teacher.cell)]
            for cell in stage:
                if cell not in taught:
                    report.say(f"{cell.label}  LEFT OUT: its teacher is not trained")
                    report.left_out()
            executors.of(task).train(taught, context)


def _is_done(store: Store, key: str) -> bool:
    return store.run(key).state == "done"


def train_teacher(network: str, protocol: Protocol, workspace: Workspace) -> Outcome:
    """Train a network as a teacher; tables under the same protocol find it in the store."""
    networks.check(network)
    precision.check(protocol, workspace.device)
    store = Store(workspace.output)
    cell = teacher_cell(network, protocol, workspace.data_root, workspace.plugins, Zoo(workspace.checkpoints))
    if not _is_done(store, cell.key) or store.run(cell).damage("student.pt"):
        train([[cell]], protocol, workspace)
    status = store.run(cell).status
    if status["state"] != "done":
        return Outcome(missing=f"the teacher {network} {status['state']} in training: {status.get('message', '')}")
    metric = get_task(protocol.task).metric
    return Outcome(f"{network} under {protocol.name}, {protocol.epochs} epochs: {metric} {status['last'][metric]:.2f}")
