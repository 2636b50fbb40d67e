"""Runs groups one after another in this process."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from kd_methods.errors import UserError

from .. import environment
from ..cell import Cell, TeacherRef
from ..networks import NetworkView
from ..spec import Protocol
from ..store import Store
from ..tasks import TaskData
from ..training.loop import Interrupted, Report, SharedTeacher, train
from ..training.member import Member
from ..weights import fit, load_weights


@dataclass(frozen=True)
class Context:
    """What groups need besides their cells.

    ``weights`` finds the file of a teacher that is no cell of the store.
    """

    store: Store
    protocol: Protocol
    data: TaskData
    device: torch.device
    weights: Callable[[TeacherRef], Path]
    report: Report
    say: Callable[[str], None]
    stopping: Callable[[], bool] = lambda: False
    save_seconds: float = 600.0

    def teacher(self, ref: TeacherRef) -> NetworkView:
        """The teacher's network with its weights."""
        network = self.data.build(ref.network)
        path = self.store.run(ref.cell) / "student.pt" if ref.cell else self.weights(ref)
        fit(load_weights(path), network.module, str(path))
        return network


def run(cells: Sequence[Cell], context: Context) -> None:
    """Compute every cell that the store does not have; cells of one group share the teacher's pass.

    Cells that another process holds are left to it, and looked at again in the end: they are done by then, or their
    holder is gone and they are computed here.

    Raises:
        Interrupted: the user asked to stop.
    """
    waiting = list({cell.key: cell for cell in cells}.values())
    while waiting:
        held: list[Cell] = []
        groups: dict[str, list[Cell]] = defaultdict(list)
        for cell in waiting:
            groups[cell.group()].append(cell)
        for group in groups.values():
            held += _run_group(group, context)
        if held:
            time.sleep(1)
            if context.stopping():
                raise Interrupted
        waiting = held


def _run_group(cells: Sequence[Cell], context: Context) -> list[Cell]:
    """Run one group; returns the cells that another process holds."""
    held = []
    with ExitStack() as locks:
        mine = []
        for cell in cells:
            if context.store.run(cell).state in ("done", "diverged"):
                continue
            run = context.store.create(cell)
            if not locks.enter_context(run.lock()):
                held.append(cell)
            elif run.state not in ("done", "diverged"):  # not finished by its holder in the meantime
                mine.append(cell)
        if mine:
            _train(mine, context)
    return held


def _train(cells: Sequence[Cell], context: Context) -> None:
    ref = cells[0].teacher
    network = context.teacher(ref) if ref else None
    facts = environment.describe(context.device)
    members = []
    try:
        for cell in cells:
            run = context.store.run(cell)
            try:
                member = Member(cell, context.protocol, context.data, network, run)
            except UserError as error:  # a method that does not apply to this pair
                run.set_status("failed", message=str(error))
                context.say(f"{cell.label}  FAILED: {error}")
                continue
            member.restore()
            member.run.set_environment(facts)
            member.run.set_status("running", epoch=member.position[0] - 1, epochs=context.protocol.epochs)
            members.append(member)
        if not members:
            return
        shared = SharedTeacher(network, (ref.mean, ref.std)) if ref and network else None
        train(members, context.data, shared, context.protocol, context.report, context.stopping, context.save_seconds)
    except torch.OutOfMemoryError as error:
        members.clear()
        if len(cells) == 1:
            context.store.run(cells[0]).set_status("failed", message=f"out of memory alone in its group: {error}")
            return
        middle = len(cells) // 2
        for part in (cells[:middle], cells[middle:]):
            _train(part, context)
