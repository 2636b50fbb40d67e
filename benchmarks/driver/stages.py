"""Stages of a plan: teachers first, then the students that learn from them."""

from __future__ import annotations

from collections.abc import Sequence

from .. import networks
from ..common.console import Outcome
from ..common.process.signals import stop_signals
from ..common.workspace import Workspace
from ..config.protocol import Protocol
from ..store.cell import Cell
from ..store.runs import Store
from ..tasks import get_task
from ..teachers.teacher_cell import teacher_cell
from ..teachers.zoo import Zoo
from ..training import precision
from ..training.failures import Interrupted
from .execution import scheduling
from .execution.crew import ALONE, Crew
from .execution.jobs import Job, divided
from .progress import Reporter, told_apart
from .trackers import Tracker
from .tracking import Tracking


def train(
    stages: Sequence[Sequence[Cell]],
    protocol: Protocol,
    workspace: Workspace,
    crew: Crew = ALONE,
    similarity: bool = False,
    trackers: Sequence[type[Tracker]] = (),
) -> None:
    """Train cells of one task stage by stage: a later one may use as teachers what an earlier one trained.

    Args:
        stages: the cells.
        protocol: their recipe, on their task.
        workspace: where.
        crew: how many jobs run at a time.
        similarity: whether students are compared with their teacher after every epoch.
        trackers: who else follows each cell.

    Raises:
        Interrupted: the user asked to stop.
        Exception: what an essential tracker raised; the cells have stopped as by a request.
    """
    task, store = get_task(protocol.task), Store(workspace.output)
    cells = [cell for stage in stages for cell in stage]
    saved = {cell.key: store.run(cell).saved_epochs for cell in cells}
    samples, names = task.samples(workspace.data_root), told_apart(cells)
    with (
        Reporter(len(cells), protocol, samples, task.metric, saved, names) as report,
        Tracking(report, trackers, cells, store) as watcher,
        stop_signals() as asked,
    ):

        def stopping() -> bool:
            return asked() or watcher.error is not None

        pool = crew.pool(workspace, watcher, stopping, len(cells), protocol.processes)
        jobs = [Job(group, protocol, similarity) for stage in stages for group in divided(stage, pool.slots)]
        try:
            scheduling.run(jobs, pool, watcher, store, stopping)
        except Interrupted:
            if not watcher.error:
                raise
    if watcher.error:
        raise watcher.error


def train_teacher(network: str, protocol: Protocol, workspace: Workspace) -> Outcome:
    """Train a network as a teacher; tables under the same protocol find it in the store."""
    networks.check(network)
    task = get_task(protocol.task)
    networks.check_modality(network, task.name, task.modality)
    precision.check(protocol, workspace.device)
    store = Store(workspace.output)
    data = get_task(protocol.task).fingerprint(workspace.data_root, protocol)
    cell = teacher_cell(network, protocol, data, workspace.plugins, Zoo(workspace.checkpoints))
    run = store.run(cell)
    if run.ended:  # and perhaps damaged: it goes on then
        run.mend_unheld(workspace.say)
    if run.state != "done" or run.damage("student.pt"):
        train([[cell]], protocol, workspace)
    status = run.status
    if damage := run.damage("student.pt"):
        return Outcome(missing=damage)
    if status["state"] != "done":
        return Outcome(missing=f"the teacher {network} {status['state']} in training: {status.get('message', '')}")
    metric = get_task(protocol.task).metric
    return Outcome(f"{network} under {protocol.name}, {protocol.epochs} epochs: {metric} {status['last'][metric]:.2f}")
