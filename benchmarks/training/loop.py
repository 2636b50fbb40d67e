"""The training loop: one pass of the teacher for all the cells of a group.

    batch -> augment once -> teacher forward once -> for each cell: student forward, losses, backward, update

A cell's result does not depend on its company: batches are functions of (seed, epoch, step), a cell draws random
numbers from its own stream, what the teacher keeps for others changes no kernel, and a method's code gets hold of
nothing that others use (see :mod:`.isolation`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Concatenate, ParamSpec

from kd_methods.contract import Batch, Outputs, Progress

from ..common.events import CellEnded, EpochEnded, Event, Stepped, Watcher
from ..config.protocol import Protocol
from ..tasks import TaskBatch
from .failures import Interrupted, marked
from .group import Group
from .optimizers import Part, parts_of_batch
from .shared_teacher import SharedTeacher, views
from .student_run import StudentRun

CHECK_EVERY = 20
"""Steps between two looks at the losses: each look waits for the device."""

P = ParamSpec("P")


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
    members = Members(student_runs, watch)
    if group.teacher and group.protocol.stored_logits and members.training():  # whoever reads them: all get the same
        group.teacher.store_logits(group.data, student_runs[0].cell.seed)
    while training := members.training():
        epoch, start = min(student_run.position for student_run in training)
        here = [student_run for student_run in training if student_run.position[0] == epoch]
        members.each(here, StudentRun.start_epoch, epoch)
        for step, batch in enumerate(group.data.batches(student_runs[0].cell.seed, epoch, start), start):
            due = [student_run for student_run in members.among(here) if student_run.position <= (epoch, step)]
            train_step(batch, (epoch, step), group, members, due)
            if not members.among(here):
                break  # before this process waits for others, which may wait for what the failed ones owe them
            if group.replica.agreed(stopping()):
                members.each(members.training(), StudentRun.interrupt)
                raise Interrupted("stopped after a whole step; the same command goes on from here")
            late = time.monotonic() - save_seconds
            members.each([student_run for student_run in due if student_run.saved_at < late], StudentRun.save)
        members.each(here, _end_epoch, epoch)
    members.each(student_runs, _finish)


def train_step(
    batch: TaskBatch, position: tuple[int, int], group: Group, members: Members, due: Sequence[StudentRun]
) -> None:
    """One batch, at an epoch and step, for those student runs that are ``due``."""
    progress = protocol_progress(group.protocol, position[0])
    for part in parts_of_batch(len(batch), group.protocol.accumulate, group.replica):
        inputs, teacher_outputs = shared(batch, part, group.teacher, members.among(due))
        members.each(due, StudentRun.step, inputs, teacher_outputs, position, progress, part)
    if position[1] % CHECK_EVERY == 0:
        members.each(due, StudentRun.check_finite)
    members.each(due, _end_step, position)


class Members:
    """The student runs of a group of which none has failed: one whose code does leaves, and the others go on."""

    def __init__(self, student_runs: Iterable[StudentRun], watch: Watcher) -> None:
        self._student_runs, self._watch = list(student_runs), watch

    def among(self, student_runs: Iterable[StudentRun]) -> list[StudentRun]:
        """Those of some student runs that have not failed."""
        return [student_run for student_run in student_runs if student_run in self._student_runs]

    def training(self) -> list[StudentRun]:
        """Those that have epochs to come."""
        return [each for each in self._student_runs if each.position[0] <= each.protocol.epochs]

    def each(
        self,
        student_runs: Iterable[StudentRun],
        act: Callable[Concatenate[StudentRun, P], Event | None],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Do the same with each of some student runs, and report what that returns.

        One that fails by its own code is marked as such in the store, reported, and left out from then on.
        """
        for student_run in self.among(student_runs):
            try:
                event = act(student_run, *args, **kwargs)
            except BaseException as error:
                failure = marked(student_run.run, error, epoch=max(student_run.position[0], 0))
                if failure is None:
                    raise
                self._student_runs.remove(student_run)
                event = failure.ended(student_run.cell)
            if event:
                self._watch(event)


def _end_step(student_run: StudentRun, position: tuple[int, int]) -> Event:
    student_run.position = (position[0], position[1] + 1)  # also past a batch too small to be shared
    return Stepped(student_run.cell.key, student_run.cell.label, student_run.position)


def _end_epoch(student_run: StudentRun, epoch: int) -> Event:
    return EpochEnded(student_run.cell.key, student_run.cell.label, student_run.end_epoch(epoch))


def _finish(student_run: StudentRun) -> Event:
    student_run.finish()
    return CellEnded(student_run.cell.key, student_run.cell.label, "done", last=student_run.records[-1]["metrics"])


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
