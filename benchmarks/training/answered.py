"""The terms of a batch of which the teacher answered a part."""

from __future__ import annotations

from collections.abc import Callable

from kd_methods.contract import Batch, Losses, Outputs, Progress


def answered(
    losses: Callable[[Outputs, Outputs, Batch, Progress], Losses],
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    progress: Progress,
) -> Losses:
    """What ``losses`` gives, its distillation terms summed over the answered samples and divided by all of the batch.

    So a sample with an answer weighs what it weighs where all have one, and one without has its task loss alone. The
    terms have to be means over samples (:attr:`kd_methods.contract.Card.by_sample`).
    """
    assert batch.answered is not None
    whole = losses(student, teacher, batch, progress)
    chosen = batch.answered.nonzero()[:, 0]
    if not len(chosen):
        return Losses(whole.task, {name: 0 * term for name, term in whole.distill.items()})
    of_chosen = losses(student.rows(chosen), teacher.rows(chosen), batch.rows(chosen), progress)
    share = len(chosen) / len(batch.labels)
    return Losses(whole.task, {name: share * term for name, term in of_chosen.distill.items()})
