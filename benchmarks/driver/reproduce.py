"""The driver: plan -> teachers -> groups that share one teacher pass -> store -> costs -> table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..analysis import similarity
from ..common import environment
from ..common.console import Outcome, counted
from ..common.workspace import Workspace
from ..cost.table_costs import measure_missing
from ..report import PAPER, Page
from ..report.collect import render, without_result
from ..store import manifest
from ..store.cell import Cell
from ..store.runs import FINAL, Facts, Store
from ..store.selection import selected
from ..tasks import get_task
from ..teachers.verification import Accuracies, check_teachers, known_accuracies
from ..teachers.zoo import Zoo
from . import engines
from .execution.crew import ALONE, Crew
from .execution.jobs import WHOLE, Shard
from .planning import cards
from .planning.describe import describe
from .planning.plan import Plan, Request, make
from .planning.plan_text import begun_in, print_plan
from .stages import train
from .trackers import Tracker


@dataclass(frozen=True)
class Options:
    """How a plan is run; what is run is in the :class:`benchmarks.driver.planning.plan.Request`.

    ``device_speed``: of a dry run, the device whose hours are printed, see
    :func:`benchmarks.driver.planning.cards.speed`.
    """

    dry_run: bool = False
    device_speed: str = ""
    any_teacher: bool = False
    costs: bool = True
    similarity: bool = False
    crew: Crew = ALONE
    shard: Shard = WHOLE
    page: Page = PAPER
    trackers: tuple[type[Tracker], ...] = ()


def reproduce(request: Request, workspace: Workspace, options: Options = Options()) -> Outcome:
    """As :func:`run`, of a plan that is made here.

    Raises:
        UserError: bad input, missing data, a teacher that is not what its entry says.
        Interrupted: the user asked to stop; the same call goes on from there.
    """
    return run(make(request, workspace, stated=options.dry_run), workspace, options)


def run(plan: Plan, workspace: Workspace, options: Options) -> Outcome:
    """Run what a table needs and is not in the store, and write the table; the outcome's text is it as Markdown.

    Raises:
        UserError: bad input, missing data, a teacher that is not what its entry says.
        Interrupted: the user asked to stop; the same call goes on from there.
    """
    store, say = Store(workspace.output), workspace.say
    cells = options.shard.of(plan.training, plan.every_cell())
    watched = options.similarity or plan.table.similarity
    facts = store.facts(cell.key for cell in cells)
    todo = _todo(plan, cells, facts, store, curves=bool(watched or plan.table.efficiency))
    if options.dry_run or (todo and plan.preset == "paper"):
        speed = cards.speed(options.device_speed, plan.protocol.precision) if options.device_speed else None
        print_plan(plan, todo, workspace, options.crew, speed)
    if options.dry_run:
        described(plan, {}, workspace)  # what the table could not show is said now
        return Outcome()
    store.check_writable()  # fails now rather than after hours
    if todo:
        options.crew.prepare()
    accuracies = _accuracies(plan, bool(todo), workspace, options)
    shown = manifest.save(workspace.output, plan.table_folder, described(plan, accuracies, workspace), say)
    asked = plan.selection
    _train(plan, cells, todo, workspace, options)
    written = render(workspace.output, plan.table_folder, say, asked, options.page)
    not_measured = 0
    if options.costs:
        shown_cells = {cell.key for cell in plan.cells.values()}
        rows = [cell for cell in cells if cell.key in shown_cells]
        not_measured = measure_missing(rows, workspace, lambda cell: _cost(cell, plan, workspace))
        written = render(
            workspace.output, plan.table_folder, lambda line: None, asked, options.page
        )  # as it was said above
    if watched:
        folder = manifest.path(workspace.output, plan.table_folder).parent
        for file in similarity.write(selected(shown, asked), store, folder, say):
            say(str(file))
    if todo:
        facts = store.facts(facts)
    for cell in cells:
        status = facts[cell.key].status
        if status["state"] in ("failed", "diverged"):
            say(f"{cell.label}  {status['state'].upper()}: {status['message']}")
    say(f"{plan.table.name}: " + ", ".join(str(file) for file in written.files if file.suffix == ".tex"))
    missing = without_result([facts[cell.key].status["state"] for cell in cells])
    without_cost = f"{counted(not_measured, 'row')} without a cost" if not_measured else ""
    return Outcome(written.text, "; ".join(filter(None, (missing, without_cost))))


def compute(plan: Plan, workspace: Workspace, options: Options) -> manifest.Manifest:
    """Run what a plan needs and is not in the store, and write no table; returns what the table would show.

    Raises:
        UserError, Interrupted: as :func:`run`.
    """
    store, cells = Store(workspace.output), plan.every_cell()
    todo = _todo(plan, cells, store.facts(cell.key for cell in cells), store, curves=False)
    store.check_writable()
    shown = described(plan, _accuracies(plan, bool(todo), workspace, options), workspace)
    _train(plan, cells, todo, workspace, options)
    return shown


def _train(plan: Plan, cells: Sequence[Cell], todo: Sequence[Cell], workspace: Workspace, options: Options) -> None:
    """Train those of a plan's cells that are to be trained."""
    if not todo:
        return
    store, watched = Store(workspace.output), options.similarity or plan.table.similarity
    saved = {cell.key: store.run(cell).saved_epochs for cell in todo}
    workspace.say(f"{counted(len(todo), 'cell')} to run{begun_in(saved)}, {len(cells) - len(todo)} in the store")
    for task in plan.tasks:
        for protocol, stages in plan.stages([cell for cell in todo if cell.task == task]):
            train(stages, protocol.on_task(task), workspace, options.crew, bool(watched), options.trackers)


def _todo(plan: Plan, cells: Sequence[Cell], facts: Mapping[str, Facts], store: Store, curves: bool) -> list[Cell]:
    """Of some cells of a plan those that are to be computed, among them those whose results are damaged.

    Only where something is to be trained are the weights of teachers looked at, and where the table has ``curves`` the
    records of epochs.
    """

    def to_do(cell: Cell, *files: str) -> bool:
        ended = facts[cell.key].status["state"] in FINAL
        return not ended or any(store.run(cell).damage(file) for file in files)

    trained = {cell.key for cell in plan.training}
    teachers, students = ([cell for cell in cells if (cell.key in trained) == first] for first in (True, False))
    todo = [cell for cell in students if to_do(cell, *(["metrics.json"] if curves else []))]
    return [*(cell for cell in teachers if to_do(cell, *(["student.pt"] if todo else []))), *todo]


def _accuracies(plan: Plan, anew: bool, workspace: Workspace, options: Options) -> Accuracies:
    """What the plan's teachers measure: where there is something to run, or not all was measured, by measuring."""
    used = {(cell.teacher.network, cell.task) for cell in plan.cells.values() if cell.teacher}
    refs = {place: ref for place, ref in plan.teachers.items() if place in used}
    known = None if anew else known_accuracies(refs, plan.data, plan.protocol, workspace)
    if known is not None:
        return known
    return check_teachers(refs, plan.protocol, workspace, engines.measured_by(workspace), options.any_teacher)


def described(plan: Plan, accuracies: Accuracies, workspace: Workspace) -> manifest.Manifest:
    """The plan as a manifest."""
    return describe(plan, Zoo(workspace.checkpoints), accuracies, environment.machine(workspace.device))


def _cost(cell: Cell, plan: Plan, workspace: Workspace) -> dict[str, Any]:
    return engines.of(get_task(cell.task)).cost(cell, plan.protocol.on_task(cell.task), workspace)
