"""The driver: plan -> teachers -> groups that share one teacher pass -> store -> costs -> table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..analysis import similarity
from ..common import environment
from ..common.console import Outcome, counted
from ..common.workspace import Workspace
from ..cost import cards
from ..cost.table_costs import measure_missing
from ..report import PAPER, Page
from ..report.collect import check_page, render, without_result
from ..store import manifest
from ..store.cell import Cell
from ..store.manifest.shapes import Manifest
from ..store.runs import Store
from ..store.selection import selected
from ..teachers.verification import Accuracies
from ..teachers.zoo import Zoo
from . import engines
from .execution.crew import ALONE, Crew
from .execution.jobs import WHOLE, Shard
from .planning.describe import describe
from .planning.missing import measured_teachers, to_compute
from .planning.plan import Plan, Request, make
from .planning.plan_text import begun_in, print_plan
from .stages import train
from .trackers import Tracker


@dataclass(frozen=True)
class Options:
    """How a plan is run; what is run is in the :class:`benchmarks.driver.planning.plan.Request`.

    ``device_speed``: of a dry run, the device whose hours are printed, see
    :func:`benchmarks.cost.cards.speed`.
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

    def watches(self, plan: Plan) -> bool:
        """Whether students are compared with their teacher after every epoch."""
        return self.similarity or bool(plan.table.similarity)


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
    check_page(options.page, [*(row.id for row in plan.rows), *plan.table.quoted])  # not after hours
    cells = options.shard.of(plan.training, plan.every_cell())
    watched = options.watches(plan)
    facts = store.facts(cell.key for cell in cells)
    todo = to_compute(plan, cells, facts, store, curves=bool(watched or plan.table.efficiency or options.page.figures))
    if options.dry_run or (todo and plan.preset == "paper"):
        if not options.dry_run:  # the command has said it, before torch was imported
            say(plan.table.heading(plan.preset))
        speed = cards.speed(options.device_speed, plan.protocol.precision) if options.device_speed else None
        print_plan(plan, cells, todo, workspace, options.crew, speed)
    if options.dry_run:
        described(plan, {}, workspace)  # what the table could not show is said now
        return Outcome()
    store.check_writable()  # fails now rather than after hours
    if todo:
        options.crew.prepare()
    accuracies = measured_teachers(plan, bool(todo), workspace, options.any_teacher)
    shown = manifest.save(workspace.output, plan.table_folder, described(plan, accuracies, workspace), say)
    asked = plan.selection
    _train(plan, cells, todo, workspace, options)
    written = render(workspace.output, plan.table_folder, say, asked, options.page)
    not_measured = 0
    if options.costs:
        shown_cells = {cell.key for cell in plan.cells.values()}
        rows = [cell for cell in cells if cell.key in shown_cells]
        not_measured = measure_missing(rows, workspace, engines.cost_by(plan.protocol, workspace))
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


def compute(plan: Plan, workspace: Workspace, options: Options) -> Manifest:
    """Run what a plan needs and is not in the store, and write no table; returns what the table would show.

    Raises:
        UserError, Interrupted: as :func:`run`.
    """
    store, cells = Store(workspace.output), plan.every_cell()
    todo = to_compute(plan, cells, store.facts(cell.key for cell in cells), store)
    store.check_writable()
    shown = described(plan, measured_teachers(plan, bool(todo), workspace, options.any_teacher), workspace)
    _train(plan, cells, todo, workspace, options)
    return shown


def _train(plan: Plan, cells: Sequence[Cell], todo: Sequence[Cell], workspace: Workspace, options: Options) -> None:
    """Train those of a plan's cells that are to be trained."""
    if not todo:
        workspace.say(f"{counted(len(cells), 'cell')} to show, all in the store")
        return
    store = Store(workspace.output)
    for run in map(store.run, todo):
        if run.ended:  # and damaged: it goes on; what ends from now on, also by an import, stays as it is
            run.mend_unheld(workspace.say)
    saved = {cell.key: store.run(cell).saved_epochs for cell in todo}
    workspace.say(f"{counted(len(todo), 'cell')} to run{begun_in(saved)}, {len(cells) - len(todo)} in the store")
    for task in plan.tasks:
        for protocol, stages in plan.stages([cell for cell in todo if cell.task == task]):
            train(stages, protocol.on_task(task), workspace, options.crew, options.watches(plan), options.trackers)


def described(plan: Plan, accuracies: Accuracies, workspace: Workspace) -> Manifest:
    """The plan as a manifest."""
    return describe(plan, Zoo(workspace.checkpoints), accuracies, environment.machine(workspace.device))
