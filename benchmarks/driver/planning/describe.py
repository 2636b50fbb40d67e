"""A plan as the manifest of its table."""

from __future__ import annotations

import json

from kd_methods import registry

from ... import networks
from ...common.files import canonical, digest
from ...common.yaml_files import merged
from ...config.changed_rows import ChangedRow, distinct_titles, flat
from ...config.protocol import load_protocol
from ...config.published import pair_entries, pair_settings
from ...config.table_spec import METRICS, Pair, Row
from ...cost.measuring import cost_key
from ...store.cell import Cell, TeacherRef
from ...store.manifest.shapes import (
    EfficiencyRows,
    Manifest,
    OurChoice,
    PlannedCell,
    PlannedColumn,
    PlannedCost,
    PlannedRow,
    PlannedTeacher,
)
from ...tasks import get_task
from ...teachers.verification import Accuracies, is_off
from ...teachers.zoo import Zoo
from .plan import Plan


def describe(plan: Plan, zoo: Zoo, accuracies: Accuracies, machine: str) -> Manifest:
    """The plan as the table's manifest."""
    rows = {row.id: row for row in plan.rows}
    first = plan.seeds[0]
    data = plan.data
    as_published = {
        (r, c): _has_published_settings(cell, c, rows[r], plan.protocol.recipe)
        for (r, c, seed), cell in plan.cells.items()
        if seed == first
    }

    def teacher(pair: Pair) -> PlannedTeacher:
        ref = plan.teacher_of(pair)
        planned = PlannedTeacher(identity=ref.identity(), cell=ref.cell, entry=ref.entry)
        if plan.protocol.teachers_from and ref.cell:
            planned = planned.model_copy(update={"trained_under": _trained_under(plan, ref)})
        if ref.entry:
            entry, protocol = zoo.get(ref.entry), plan.protocol_of(pair)
            measured = accuracies.get((pair.teacher, protocol.task), {})
            off = is_off(entry, measured.get(get_task(protocol.task).metric), protocol)
            facts = {"origin": entry.origin, "accuracy": measured.get(plan.metric_of(pair)), "off": off}
            planned = planned.model_copy(update={**facts, "saw_holdout": bool(plan.protocol.holdout)})
        return planned

    def column(pair: Pair) -> PlannedColumn:
        task, metric = plan.protocol_of(pair).task, plan.metric_of(pair)
        return PlannedColumn(
            key=pair.id,
            teacher_network=pair.teacher,
            student=pair.student,
            teacher_title=networks.title(pair.teacher),
            student_title=networks.title(pair.student),
            lr=plan.protocol.lr(pair.student),
            task=task,
            metric=metric,
            metric_title=METRICS.get(metric, metric),
            init=pair.init,
            data=data[task],
            teacher=teacher(pair),
        )

    titles = distinct_titles({row.id: row.title or registry.card(row.method).title for row in plan.rows})

    def described(row: Row) -> PlannedRow:
        card = registry.card(row.method)
        return PlannedRow(
            key=row.id,
            method=row.method,
            title=titles[row.id],
            family=card.family,
            published=_published_row(row),
            optimizer=plan.protocol.with_optimizer(row.optimizer).optimizer.line() if row.optimizer else "",
            our_choice=tuple(_our_choice(row, plan)),
            student=row.student,
            init=row.init,
            defaults=registry.settings(row.method).model_dump(mode="json"),
            settings=row.settings,
            code=_code(row, plan),
            base=row.base if isinstance(row, ChangedRow) else "",
            changes=row.changes if isinstance(row, ChangedRow) else {},
        )

    series = {(r, c): _series(cell) for (r, c, s), cell in plan.cells.items() if s == first}
    preset, efficiency = plan.table.preset(plan.preset), plan.table.efficiency
    return Manifest(
        name=plan.table.name,
        title=preset.title or plan.table.title,
        published=plan.table.published,
        sources=plan.table.sources,
        quoted=dict(plan.table.quoted),
        efficiency=EfficiencyRows(ours=efficiency.row, against=efficiency.against) if efficiency else None,
        recipe=plan.protocol.recipe,
        protocol=plan.protocol.identity(),
        protocol_lines=tuple(plan.lines(students=())),
        column_tasks=plan.column_tasks,
        lr=plan.protocol.optimizer.lr,
        deviations=plan.protocol.deviations,
        notes=(*plan.notes, *_uniform_note(plan), *_unpublished_note(plan)),
        row_order=tuple(row.id for row in preset.methods or ()),
        column_order=tuple(pair.id for pair in preset.pairs or ()),
        columns=tuple(map(column, plan.pairs)),
        rows=tuple(map(described, plan.rows)),
        cells=tuple(
            PlannedCell(
                row=r,
                column=c,
                seed=s,
                key=cell.key,
                series=series[r, c],
                settings=cell.settings,
                published_settings=as_published[r, c],
                taught=cell.teacher is not None,
            )
            for (r, c, s), cell in plan.cells.items()
        ),
        costs=tuple(
            PlannedCost(row=r, column=c, key=cost_key(cell, machine))
            for (r, c, s), cell in plan.cells.items()
            if s == first
        ),
    )


def _series(cell: Cell) -> str:
    """What the seeds of a row in a column have in common, as a digest: everything but the seed."""
    return digest({name: value for name, value in cell.identity().items() if name != "seed"})[:16]


def _code(row: Row, plan: Plan) -> str:
    """Which code computes a row: the method's version, and the digest of the file where a plugin brings it."""
    cell = plan.cells[row.id, plan.pairs[0].id, plan.seeds[0]]
    files = [text for name, text in sorted(cell.plugins.items()) if name.startswith("method:")]
    return " ".join([str(cell.method_version), *files])


def _trained_under(plan: Plan, ref: TeacherRef) -> str:
    """The protocol of a teacher, where it is not the students', and what the teacher began with."""
    protocol = plan.teacher_protocol
    usual = load_protocol(plan.protocol.teachers_from).epochs
    length = f" ({protocol.epochs} epochs instead of {usual})" if protocol.epochs != usual else ""
    start = next((cell.start for cell in plan.training if cell.key == ref.cell), None)
    begun = f" from the ImageNet weights {start.entry}" if start else ""
    return f"{protocol.name} v{protocol.version}{length}{begun}"


def _uniform_note(plan: Plan) -> list[str]:
    return ["no settings per pair: a method has the same settings in every column"] if plan.uniform else []


def _has_published_settings(cell: Cell, pair: str, row: Row, recipe: str) -> bool:
    """Whether a cell runs with what is published for its method and pair, and so may be compared."""
    if row.optimizer and not row.published:
        return False
    # A row that says which published one it repeats brings that one's settings along.
    values = merged(pair_settings(cell.method, pair, recipe), row.settings_on(pair) if row.published else {})
    usual = registry.settings(cell.method, values)
    return cell.settings == usual.model_dump(mode="json")


def _published_row(row: Row) -> str:
    """The row of the published values that this one repeats; none where it trains or sets something of its own."""
    return row.published or ("" if row.student or row.settings or row.by_pair else row.method)


def _unpublished_note(plan: Plan) -> list[str]:
    return [] if plan.table.published else ["no published values are known for this table"]


def _our_choice(row: Row, plan: Plan) -> list[OurChoice]:
    """The settings that no source gives, with their values; columns are named where it is not all of them."""
    columns: dict[tuple[str, str], list[str]] = {}
    for pair in plan.pairs:
        cell = plan.cells[row.id, pair.id, plan.seeds[0]]
        settings = flat(cell.settings)
        chosen = dict.fromkeys(registry.card(cell.method).our_choice)
        for prefix, entry in [] if plan.uniform else pair_entries(cell.method, pair.id, plan.protocol.recipe):
            for key, value in flat(entry.values).items():
                if key in entry.chosen():
                    chosen[f"{prefix}{key}"] = None
                elif settings[f"{prefix}{key}"] == value:  # published for this pair
                    chosen.pop(f"{prefix}{key}", None)
        if row.our_choice:
            chosen |= dict.fromkeys(flat(row.settings_on(pair.id)))
        for key in chosen:
            columns.setdefault((key, canonical(settings[key])), []).append(pair.id)
    everywhere = len(plan.pairs)
    return [
        OurChoice(key=key, value=json.loads(value), columns=tuple(ids) if len(ids) < everywhere else ())
        for (key, value), ids in columns.items()
    ]
