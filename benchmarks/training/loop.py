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

from kd_methods.contract import Batch, Outputs, Progress

from ..common.events import CellEnded, EpochEnded, Stepped, Watcher
from ..config.protocol import Protocol
from ..tasks import TaskBatch
from .failures import Interrupted, marked
from .group import Group
from .optimizers import Part, parts_of_batch
from .shared_teacher import SharedTeacher, views
from .student_run import StudentRun

CHECK_EVERY = 20
"""Steps between two looks at the losses: each look waits for the device."""


def train(
    student_runs: Sequence[StudentRun],
    group: Group,
    watch: Watcher,
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
    protocol, data, teacher = group.protocol, group.data, group.teacher
    active = [student_run for student_run in student_runs if student_run.position[0] <= protocol.epochs]
    seed = student_runs[0].cell.seed
    if teacher and protocol.stored_logits and active:  # whoever reads them, so that all get the same
        teacher.store_logits(data, seed)
    while active:
        epoch, start = min(student_run.position for student_run in active)
        progress = protocol_progress(protocol, epoch)
        here = [student_run for student_run in active if student_run.position[0] == epoch]
        for student_run in here:
            with guarded(student_run, active, watch):
                student_run.start_epoch(epoch)
        for step, batch in enumerate(data.batches(seed, epoch, start), start):
            due = [
                student_run for student_run in here if student_run in active and student_run.position <= (epoch, step)
            ]
            for part in parts_of_batch(len(batch), protocol.accumulate, group.replica):
                inputs, teacher_outputs = shared(batch, part, teacher, due)
                for student_run in due:
                    if student_run in active:
                        with guarded(student_run, active, watch):
                            student_run.step(inputs, teacher_outputs, (epoch, step), progress, part)
                            if part.last and step % CHECK_EVERY == 0:
                                student_run.check_finite()
            for student_run in due:
                if student_run in active:
                    student_run.position = (epoch, step + 1)  # also past a batch too small to be shared
                    watch(Stepped(student_run.cell.key, student_run.cell.label, student_run.position))
            stop = group.replica.agreed(stopping())
            for student_run in list(active) if stop else due:
                if student_run in active and (stop or time.monotonic() - student_run.saved_at > save_seconds):
                    with guarded(student_run, active, watch):
                        student_run.save()
            if stop:
                for student_run in active:
                    student_run.run.set_status(
                        "interrupted", epoch=max(student_run.position[0] - 1, 0), epochs=protocol.epochs
                    )
                raise Interrupted("stopped after a whole step; the same command goes on from here")
        for student_run in here:
            if student_run in active:
                with guarded(student_run, active, watch):
                    student_run.end_epoch(epoch)
                if student_run in active:
                    watch(EpochEnded(student_run.cell.key, student_run.cell.label, student_run.records[-1]))
        active = [student_run for student_run in active if student_run.position[0] <= protocol.epochs]
    for student_run in student_runs:
        if student_run.run.state == "running":
            active = [student_run]
            with guarded(student_run, active, watch):
                student_run.finish()
            if active:
                last = student_run.records[-1]["metrics"]
                watch(CellEnded(student_run.cell.key, student_run.cell.label, "done", last=last))


def shared(
    batch: TaskBatch, part: Part, teacher: SharedTeacher | None, student_runs: Sequence[StudentRun]
) -> tuple[Batch, Outputs | None]:
    """What a group shares of some samples of a batch: the inputs, and the teacher's outputs."""
    samples, needs = part.of(batch), [student_run.needs for student_run in student_runs]
    outputs = teacher.outputs(samples, needs) if teacher else None
    inputs = samples.student(views(needs))
    if teacher:
        inputs = replace(inputs, renormalised=samples.as_taught().inputs(teacher.normalisation))
    return (inputs if samples is batch else replace(inputs, whole=False)), outputs


def protocol_progress(protocol: Protocol, epoch: int) -> Progress:
    """Where an epoch of a run stands in its recipe."""
    return Progress(protocol.recipe_epoch(epoch), protocol.recipe_epochs, protocol.recipe_epoch(1))


@contextmanager
def guarded(student_run: StudentRun, active: list[StudentRun], watch: Watcher) -> Iterator[None]:
    """A student run whose code fails inside is marked, reported and dropped from ``active``; the others go on."""
    try:
        yield
    except BaseException as error:
        failure = marked(student_run.run, error, epoch=max(student_run.position[0], 0))
        if failure is None:
            raise
        active.remove(student_run)
    else:
        return
    watch(failure.ended(student_run.cell))
