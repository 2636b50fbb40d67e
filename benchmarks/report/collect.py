"""Out of the store into a table: what a manifest plans, with the runs' figures and the published values.

Reads neither data nor checkpoints, clock nor environment. Imports no torch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from kd_methods.errors import UserError

from .. import report
from ..common.console import counted, say
from ..common.files import digest, write_text
from ..common.network_names import network_title
from ..config.changed_rows import distinct_titles, flat
from ..config.deviations import shortest
from ..config.protocol import load_protocol, protocol_names
from ..config.published import PublishedLine, literature
from ..config.table_spec import METRICS
from ..store import documents
from ..store.manifest import existing, path
from ..store.manifest.earlier import SAW_HOLDOUT
from ..store.manifest.shapes import Manifest, OurChoice, PlannedColumn, PlannedRow
from ..store.runs import FINAL, Store
from ..store.selection import ALL, Selection, left_out, selected
from . import run_names
from .citations import bibliography, row_papers
from .collect_cost import collect_cost
from .layouts.paper_table import PAPER, Page
from .provenance import provenance


class Written(NamedTuple):
    """A table's files, the table as Markdown, and in words what is missing in it, if anything."""

    files: list[Path]
    text: str
    missing: str


def render(
    output: Path,
    table_folder: str,
    say: Callable[[str], None] = say,
    wanted: Selection = ALL,
    page: Page = PAPER,
) -> Written:
    """Write a table and its cost table from the store.

    Args:
        output: the store's folder.
        table_folder: its name in it.
        say: called with a line for each run that is damaged, and so missing, and for what else is left out.
        wanted: the rows, columns and seeds to show; by default all that the store has.
        page: what is shown beside the means, or instead of the deviation between seeds.

    Raises:
        UserError: nothing was ever planned under that name, nothing of what is wanted, or not the row to highlight.
    """
    whole = existing(output, table_folder)
    manifest = selected(whole, wanted)
    if omitted := left_out(whole, manifest):
        say(omitted)
    store = Store(output)
    table = collect(manifest, store, say)
    table = replace(table, intervals=page.intervals, average_rank=page.average_rank)
    folder = path(output, table_folder).parent
    check_page(page, [row.key for row in (*table.rows, *table.quoted)])
    cost = collect_cost(manifest, store, table, say)
    files = report.write(table, folder, manifest.name, page, cost)
    text = next(file for file in files if file.suffix == ".md").read_text(encoding="utf-8")
    if rows := manifest.efficiency:
        files += report.write_efficiency(table, _curves(manifest, store, say), rows.ours, rows.against, folder)
    if page.figures:
        files += report.draw(table, _curves(manifest, store, say), cost, folder)
    if cost:
        files += report.write_cost(cost, folder, f"{manifest.name}-cost")
    write_text(folder / f"{manifest.name}-runs.csv", run_names.as_csv(whole, table_folder, store))
    rows_by_key = {row.key: row for row in table.rows}
    states: dict[str, str] = {}
    for cell in manifest.cells:  # one may stand in several columns
        runs = rows_by_key[cell.row].entries[cell.column].runs
        states[cell.key] = next(run.status for run in runs if run.seed == cell.seed)
    return Written(files, text, without_result(list(states.values())))


def check_page(page: Page, rows: Sequence[str]) -> None:
    """Raise UserError where a page is to highlight a row that the table has not."""
    if page.highlight and page.highlight not in rows:
        raise UserError(f"--highlight {page.highlight}: the table has no such row; it has {', '.join(rows)}")


def without_result(states: Sequence[str]) -> str:
    """How many of some cells have no result, in words. A method that is not for a pair is an answer."""
    left = Counter(state for state in states if state not in ("done", "refused"))
    named = {state: left.pop(state, 0) for state in ("failed", "diverged")} | {"left out": left.total()}
    counts = ", ".join(f"{count} {name}" for name, count in named.items() if count)
    return f"{sum(named.values())} of {counted(len(states), 'cell')} without a result: {counts}" if counts else ""


def collect(manifest: Manifest, store: Store, say: Callable[[str], None] = say) -> report.Table:
    """The table's content out of the store."""
    facts: list[documents.Environment] = []
    entries: dict[str, dict[str, list[report.SeedResult]]] = {}
    metrics = {column.key: column.metric for column in manifest.columns}
    remarks: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    known = store.facts(planned.key for planned in manifest.cells)
    for planned in manifest.cells:
        status, environments = known[planned.key]
        if status["state"] == "damaged":
            say(f"missing in the table: {status['message']}")
        for remark in status.get("remarks", []):
            remarks[planned.row][remark][planned.column] = None
        state: Any = status["state"] if status["state"] in (*FINAL, "failed") else "missing"
        metric = metrics[planned.column]
        message = status["message"] if state == "refused" else ""
        if state == "done" and metric not in status["last"]:
            if metric not in METRICS:
                raise UserError(f"column {planned.column} has no metric '{metric}'; known: {', '.join(status['last'])}")
            # Of a test set without small objects there is no precision of small objects.
            state, message = "refused", f"{METRICS[metric]} is not defined on this test set"
        figures = {rule: status[rule][metric] for rule in ("last", "best")} if state == "done" else {}
        entries.setdefault(planned.row, {}).setdefault(planned.column, []).append(
            report.SeedResult(planned.seed, state, **figures, message=message)
        )
        if state == "done":
            facts += environments
    usual: dict[tuple[str, str], bool] = defaultdict(lambda: True)
    for planned in manifest.cells:
        usual[planned.row, planned.column] &= planned.published_settings
    columns = tuple(_column(column, manifest, store) for column in manifest.columns)
    metric_titles = dict.fromkeys(column.metric_title for column in manifest.columns)
    titles = distinct_titles({row.key: row.title for row in manifest.rows})  # they may have been planned one by one
    rows = tuple(
        report.TableRow(
            key=row.key,
            title=titles[row.key],
            family=row.family,
            entries={
                column.key: report.TableEntry(
                    tuple(sorted(entries.get(row.key, {}).get(column.key, []), key=lambda run: run.seed)),
                    _published(manifest, _published_key(row), column, usual[row.key, column.key]),
                )
                for column in manifest.columns
            },
            our_choice=tuple(map(_chosen, row.our_choice)),
            settings_note="; ".join(
                [*_settings_note(row, manifest), *_remarks(remarks[row.key], len(entries.get(row.key, {})))]
            ),
            cites=tuple(key for key in row_papers(row.method, row.optimizer) if key in bibliography()),
        )
        for row in manifest.rows
    )
    quoted = tuple(
        report.TableRow(key, title, "quoted", _quoted(manifest, key)) for key, title in manifest.quoted.items()
    )
    tasks = {column.task for column in manifest.columns}
    where = f" on {tasks.pop()}" if manifest.column_tasks and len(tasks) == 1 else ""  # several stand over the columns
    columns, rows = report.with_means(columns, rows)
    return report.Table(
        name=manifest.name,
        title=manifest.title,
        metric=(next(iter(metric_titles)) if len(metric_titles) == 1 else "The metric named over each column") + where,
        columns=columns,
        rows=rows,
        quoted=tuple(row for row in quoted if row.entries),
        protocol_lines=(*manifest.protocol_lines, *_rates(manifest)),
        deviations=shortest(manifest.deviations),
        notes=(*manifest.notes, *_holdout_note(manifest)),
        provenance=provenance(facts),
        protocol=manifest.protocol.get("name", ""),
        digest=digest(sorted(cell.key for cell in manifest.cells)),
    )


def _curves(manifest: Manifest, store: Store, say: Callable[[str], None]) -> dict[tuple[str, str, int], list[float]]:
    """The metric after every epoch of the training proper, by row, column and seed.

    Empty where an epoch has none: of a test set without small objects there is no precision of these.
    """
    metric_of = {column.key: column.metric for column in manifest.columns}
    curves: dict[tuple[str, str, int], list[float]] = {}
    for cell in manifest.cells:
        epochs = [record["metrics"] for record in store.metrics(cell.key, say) if not record.get("phase")]
        metric = metric_of[cell.column]
        defined = all(metric in metrics for metrics in epochs)
        curves[cell.row, cell.column, cell.seed] = [metrics[metric] for metrics in epochs] if defined else []
    return curves


def measured_teacher(column: PlannedColumn, store: Store) -> tuple[float | None, list[str]]:
    """What a column's teacher measures, its last epoch where it was trained here, else its file; and its remarks."""
    if not column.teacher.cell:
        return column.teacher.accuracy, []
    status = store.run(column.teacher.cell).status
    return status.get("last", {}).get(column.metric), status.get("remarks", [])


def _column(column: PlannedColumn, manifest: Manifest, store: Store) -> report.Column:
    teacher, (accuracy, remarks) = column.teacher, measured_teacher(column, store)
    if teacher.cell:
        trained = f"trained here under {teacher.trained_under or 'the same protocol'}, seed 0"
        note = "; ".join([trained, *remarks])
    else:
        note = f"entry {teacher.entry}" + (", off its expected accuracy" if teacher.off else "")
    if column.init:
        note += f"; {_START[column.init]}"
    published = _published(manifest, "teacher", column, True)
    return report.Column(
        key=column.key,
        teacher=column.teacher_network,
        student=column.student,
        teacher_accuracy=accuracy,
        teacher_note=note,
        teacher_published=published if teacher.cell or not published else replace(published, epoch_rule="file"),
        task=column.task,
        metric=column.metric,
        titles=(
            column.teacher_title or network_title(column.teacher_network),
            column.student_title or network_title(column.student),
        ),
    )


def _rates(manifest: Manifest) -> list[str]:
    """The students that have a learning rate of their own."""
    rates: dict[float, list[str]] = defaultdict(list)
    for student, rate in sorted({(column.student, column.lr) for column in manifest.columns}):
        rates[rate].append(student)
    return [f"lr {rate:g} for {', '.join(names)}" for rate, names in rates.items() if rate != manifest.lr]


def _remarks(columns_of: Mapping[str, Mapping[str, None]], columns: int) -> list[str]:
    """What a row's runs say of how the method was built, with the columns where it is not all of them."""
    return [text if len(keys) == columns else f"{text} ({', '.join(keys)})" for text, keys in columns_of.items()]


def _chosen(choice: OurChoice) -> str:
    text = f"{choice.key} {choice.value}"
    return f"{text} ({', '.join(choice.columns)})" if choice.columns else text


def _settings_note(row: PlannedRow, manifest: Manifest) -> list[str]:
    """What beside its title and our choices differs in a row from the method's defaults, by column if these differ."""
    used = {cell.column: flat(cell.settings) for cell in manifest.cells if cell.row == row.key}
    defaults = flat(row.defaults)
    chosen = {choice.key: choice.value for choice in row.our_choice if not choice.columns}
    noted = {key for key, value in chosen.items() if all(values.get(key) == value for values in used.values())}
    changed: dict[str, list[str]] = defaultdict(list)
    for column, values in sorted(used.items()):
        others = [key for key in values if key not in row.changes and values[key] != defaults.get(key)]
        if differing := ", ".join(f"{key} {values[key]}" for key in others if key not in noted):
            changed[differing].append(column)
    notes = [f"{text} for {', '.join(columns)}" for text, columns in changed.items()]
    if [len(columns) for columns in changed.values()] == [len(used)]:
        notes = list(changed)
    if optimizer := row.optimizer:
        notes = [optimizer, *notes]
    if student := row.student:
        notes = [f"the network trained is {student}", *notes]
    if init := row.init:
        notes = [_START[init], *notes]
    return notes


_START = {"heads": "the student starts from its teacher's neck and heads"} | {
    which: f"the student starts from its teacher's weights and {text} layers"
    for which, text in (("first", "first"), ("last", "last"), ("spread", "equally spread"))
}


def _published_key(row: PlannedRow) -> str:
    return row.method if row.published is None else row.published


def _published(manifest: Manifest, method: str, column: PlannedColumn, usual_settings: bool) -> report.Published | None:
    """The literature's figure for a method on a pair, from the first of the table's sources that has one."""
    if not manifest.published:
        return None
    lines = [line for line in literature(manifest.published) if (line.method, line.pair) == (method, column.key)]
    recipe = _recipe_of_teachers(manifest.recipe) if method == "teacher" else manifest.recipe
    rank = {name: i for i, name in enumerate(manifest.sources)}

    def order(line: PublishedLine) -> tuple[int, int]:
        place = next((i for name, i in rank.items() if name in line.source), len(rank))
        return line.protocol != recipe, place

    if not lines:
        return None
    line = min(lines, key=order)
    reasons = []
    if line.protocol != recipe:
        reasons.append(f"published under {line.protocol}")
    elif recipe not in protocol_names():
        reasons.append(f"published under another {line.protocol}")
    elif other := _other_measure(line, recipe, column):
        reasons.append(other)
    elif manifest.deviations:
        reasons.append("our protocol deviates from the published one")
    if not usual_settings:
        reasons.append("other settings than the published ones")
    if method != "student":
        if column.teacher.origin != line.teacher:
            reasons.append("another teacher")
        elif column.teacher.off:
            reasons.append("the teacher is off its expected accuracy")
    return report.Published(
        value=line.value,
        std=line.std,
        source=line.source + (f", {line.note}" if line.note else ""),
        epoch_rule=line.epoch_rule,
        comparable=not reasons,
        reason="; ".join(reasons),
    )


def _recipe_of_teachers(recipe: str) -> str:
    """By which the teachers of a recipe were trained."""
    return (recipe in protocol_names() and load_protocol(recipe).teachers_from) or recipe


def _holdout_note(manifest: Manifest) -> list[str]:
    files = dict.fromkeys(column.teacher.entry for column in manifest.columns if column.teacher.saw_holdout)
    return [f"the teacher files {', '.join(files)} {SAW_HOLDOUT}"] if files else []


def _other_measure(line: PublishedLine, recipe: str, column: PlannedColumn) -> str:
    """What keeps a pair's value from being ours although the recipe is one; an id with a task says both itself."""
    if ":" in column.key or recipe not in protocol_names():
        return ""
    if column.metric != line.metric:
        return "another metric"
    return "another data set" if column.task not in ("", load_protocol(recipe).task) else ""


def _quoted(manifest: Manifest, key: str) -> dict[str, report.TableEntry]:
    """The published values of a method that is not run, by column."""
    values = {column.key: _published(manifest, key, column, True) for column in manifest.columns}
    return {column: report.TableEntry((), value) for column, value in values.items() if value}
