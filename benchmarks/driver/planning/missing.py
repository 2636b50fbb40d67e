"""What a plan needs and is not there: cells without a result, teachers that are not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...common.workspace import Workspace
from ...store.cell import Cell
from ...store.runs import FINAL, Facts, Store
from ...teachers.verification import Accuracies, check_teachers, known_accuracies
from .. import engines
from .plan import Plan


def to_compute(
    plan: Plan, cells: Sequence[Cell], facts: Mapping[str, Facts], store: Store, curves: bool = False
) -> list[Cell]:
    """Of some cells of a plan those that are to be computed, among them those whose results are damaged.

    Only where something is to be trained are the weights of teachers looked at, and where the table has ``curves`` the
    records of epochs.
    """

    def to_do(cell: Cell, *files: str) -> bool:
        ended = facts[cell.key].status["state"] in FINAL
        return not ended or any(store.run(cell).damage(file) for file in files)

    teachers, students = plan.apart(cells)
    read = ["metrics.json"] if curves else []
    todo = [cell for cell in students if to_do(cell, *read)]
    read = ["student.pt"] if todo else []
    return [*(cell for cell in teachers if to_do(cell, *read)), *todo]


def measured_teachers(plan: Plan, anew: bool, workspace: Workspace, any_teacher: bool) -> Accuracies:
    """What the plan's teachers measure: where there is something to run, or not all was measured, by measuring.

    Raises:
        UserError: a teacher is not what its entry says, unless it may be ``any_teacher``.
    """
    used = {(cell.teacher.network, cell.task) for cell in plan.cells.values() if cell.teacher}
    refs = {place: ref for place, ref in plan.teachers.items() if place in used}
    known = None if anew else known_accuracies(refs, plan.data, plan.protocol, workspace)
    if known is not None:
        return known
    return check_teachers(refs, plan.protocol, workspace, engines.measured_by(workspace), any_teacher)
