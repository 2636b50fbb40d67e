"""The training loop: one pass of the teacher for all the cells of a group.

    batch -> augment once -> teacher forward once -> for each cell: student forward, losses, backward, update

A cell's result does not depend on its company: batches are functions of (seed, epoch, step), a cell draws random
numbers from its own stream, what the teacher keeps for others changes no kernel, and a method's code gets hold of
nothing that others use (see :mod:`.isolation`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast
from typing import Protocol as Interface

import torch
from torch import Tensor

from kd_methods.contract import Batch, Outputs, Progress

from ..config.protocol import Protocol
from ..networks import NetworkView
from ..store.cell import Cell
from ..store.runs import Run
from ..tasks import TaskBatch, TaskData
from ..tasks.images import ImageData, Normalisation
from .failures import Interrupted, of_cell
from .optimizers import Part, parts
from .precision import autocast
from .student_run import StudentRun

CHECK_EVERY = 20
"""Steps between two looks at the losses: each look waits for the device."""


class Watched(Interface):
    """A cell in training as progress reports see it."""

    @property
    def cell(self) -> Cell: ...

    @property
    def run(self) -> Run: ...

    @property
    def first_epoch(self) -> int: ...

    @property
    def position(self) -> tuple[int, int]: ...

    @property
    def records(self) -> list[dict[str, Any]]: ...


Report = Callable[[Watched, str], None]
"""Called with a cell in training and an event: "step", "epoch", "done", "diverged" or "failed"."""


class SharedTeacher:
    """The frozen teacher's pass over a batch, kept as the union of what the student runs need.

    Args:
        network: the frozen teacher; its batch-norms are folded here, the methods see it as it is.
        normalisation: how the teacher wants its inputs.
        protocol: in whose precision it computes.
    """

    def __init__(self, network: NetworkView, normalisation: Normalisation, protocol: Protocol) -> None:
        self.network, self.normalisation, self.protocol = network, normalisation, protocol
        network.compiles = protocol.compile
        self.logits: Tensor | None = None

    def store_logits(self, data: ImageData, seed: int) -> None:
        """Compute the logits of all training images once; :meth:`outputs` has them from now on."""
        found = []
        for batch in data.augmented(seed, self.protocol.batch_size):
            with torch.no_grad(), autocast(self.protocol, data.device):
                found.append(self.network.fold_batch_norms()(batch.inputs(self.normalisation), fields=()).logits)
        self.logits = torch.cat(found)

    def outputs(self, batch: TaskBatch, student_runs: Sequence[StudentRun]) -> Outputs | None:
        """One forward pass, or None if no student run wants one."""
        wanting = [
            student_run for student_run in student_runs if student_run.needs.teacher or student_run.needs.teacher_units
        ]
        if not wanting:
            return None
        at, fields = set[str](), set[str]()
        for student_run in wanting:
            at.update(student_run.needs.teacher_units)
            fields.update(name for name in student_run.needs.teacher if name != "logits")
        network = self.network.fold_batch_norms()
        with torch.no_grad(), autocast(self.protocol, batch.inputs(self.normalisation).device):
            kept = network(batch.inputs(self.normalisation), at=at, fields=fields)
            if views(wanting) > 1:
                kept = kept.with_second(network(batch.inputs(self.normalisation, view=2), at=at, fields=fields))
        return kept if self.logits is None else kept.with_other_logits(self.logits[batch.student().indices])


def views(student_runs: Sequence[StudentRun]) -> int:
    """How many views of each image a group wants."""
    return max((student_run.needs.views for student_run in student_runs), default=1)


def train(
    student_runs: Sequence[StudentRun],
    data: TaskData,
    teacher: SharedTeacher | None,
    protocol: Protocol,
    report: Report,
    stopping: Callable[[], bool] = lambda: False,
    save_seconds: float = 600.0,
) -> None:
    """Train a group to the end; every student run's store run says how it ended.

    Student runs may stand at different positions (after a kill between two of their checkpoints): each takes part from
    its own position on. A student run that diverges or crashes is dropped, the others go on.

    Raises:
        Interrupted: ``stopping`` said so; every student run was saved after a whole step.
        RuntimeError, MemoryError, OSError: one by which memory is short (see :mod:`.failures`): the group does not fit;
            student runs resume from their checkpoints in smaller groups.
    """
    active = [student_run for student_run in student_runs if student_run.position[0] <= protocol.epochs]
    seed = student_runs[0].cell.seed
    if teacher and protocol.stored_logits and active:  # whoever reads them, so that all get the same
        teacher.store_logits(cast(ImageData, data), seed)
    while active:
        epoch, start = min(student_run.position for student_run in active)
        progress = protocol_progress(protocol, epoch)
        here = [student_run for student_run in active if student_run.position[0] == epoch]
        for student_run in here:
            with guarded(student_run, active, report):
                student_run.start_epoch(epoch)
        for step, batch in enumerate(data.batches(seed, epoch, start), start):
            due = [
                student_run for student_run in here if student_run in active and student_run.position <= (epoch, step)
            ]
            for part in parts(len(batch), protocol.accumulate):
                inputs, kept = shared(batch, part, teacher, due)
                for student_run in due:
                    if student_run in active:
                        with guarded(student_run, active, report):
                            student_run.step(inputs, kept, (epoch, step), progress, part)
                            if part.last and step % CHECK_EVERY == 0:
                                student_run.check_finite()
            for student_run in due:
                if student_run in active:
                    report(student_run, "step")
            stop = stopping()
            for student_run in list(active) if stop else due:
                if student_run in active and (stop or time.monotonic() - student_run.saved_at > save_seconds):
                    with guarded(student_run, active, report):
                        student_run.save()
            if stop:
                for student_run in active:
                    student_run.run.set_status(
                        "interrupted", epoch=max(student_run.position[0] - 1, 0), epochs=protocol.epochs
                    )
                raise Interrupted("stopped after a whole step; the same command goes on from here")
        for student_run in here:
            if student_run in active:
                with guarded(student_run, active, report):
                    student_run.end_epoch(epoch)
                if student_run in active:
                    report(student_run, "epoch")
        active = [student_run for student_run in active if student_run.position[0] <= protocol.epochs]
    for student_run in student_runs:
        if student_run.run.state == "running":
            active = [student_run]
            with guarded(student_run, active, report):
                student_run.finish()
            if active:
                report(student_run, "done")


def shared(
    batch: TaskBatch, part: Part, teacher: SharedTeacher | None, student_runs: Sequence[StudentRun]
) -> tuple[Batch, Outputs | None]:
    """What a group shares of some samples of a batch: the inputs, and the teacher's outputs."""
    own = part.of(batch)
    kept = teacher.outputs(own, student_runs) if teacher else None
    inputs = own.student(views(student_runs))
    if teacher:
        inputs = replace(inputs, renormalised=own.inputs(teacher.normalisation))
    return (inputs if own is batch else replace(inputs, whole=False)), kept


def protocol_progress(protocol: Protocol, epoch: int) -> Progress:
    """Where an epoch of a run stands in its recipe."""
    return Progress(protocol.recipe_epoch(epoch), protocol.recipe_epochs, protocol.recipe_epoch(1))


@contextmanager
def guarded(student_run: StudentRun, active: list[StudentRun], report: Report) -> Iterator[None]:
    """A student run whose code fails inside is marked, reported and dropped from ``active``; the others go on."""
    try:
        yield
    except BaseException as error:
        failure = of_cell(error)
        if failure is None:
            raise
        student_run.run.set_status(**failure.facts(), epoch=max(student_run.position[0], 0))
        active.remove(student_run)
    else:
        return
    report(student_run, failure.state)
