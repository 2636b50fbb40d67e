"""Every figure of a table in long format: one line per row and column."""

from __future__ import annotations

from ...common.files import canonical, csv_text
from ..layouts.cost_table import rate, reference
from ..model import HELD, Column, CostRow, CostTable, Published, Table, TableRow
from ..ranking import ranking
from ..seed_statistics import finished, gap, half_width, summarise, teacher_gap

_DECIMALS = 4


def render(table: Table) -> str:
    """Every value in a column of its own: lists are JSON, ``last.S`` and ``best.S`` are those of seed S."""
    ranked = ranking(table)
    lines: list[dict[str, object]] = []
    for column in table.columns:
        published = column.teacher_published
        lines.append({
            "row": "teacher", "title": "Teacher", "pair": column.key, "teacher": column.teacher,
            "student": column.student, "value": column.teacher_accuracy, "note": column.teacher_note,
            **_of(table, column),
        } | _published(published, teacher_gap(column.teacher_accuracy, published)))  # fmt: skip
    for row in table.rows:
        for column in table.columns:
            entry, place = row.entries.get(column.key), (row.key, column.key)
            summary, published = summarise(entry), entry.published if entry else None
            done = [run for run in (entry.runs if entry else ()) if finished(run)]
            lines.append({
                **_place(row, column), "value": summary.mean("last"),
                "n": summary.n, "planned": summary.planned, "diverged": summary.diverged, "failed": summary.failed,
                "refused": summary.refused, "missing": summary.missing,
                "mean_last": summary.mean_last, "std_last": summary.std_last,
                "mean_best": summary.mean_best, "std_best": summary.std_best, "rank": ranked.ranks.get(place),
                "tied": place in ranked.tied, "p_best": ranked.p_values.get(place),
                "ci95_last": half_width(summary.std_last, summary.n),
                "ci95_best": half_width(summary.std_best, summary.n), "note": row.settings_note,
                "our_choice": canonical(list(row.our_choice)), **_of(table, column),
            } | _published(published, gap(summary, published)) | {
                f"{rule}.{run.seed}": getattr(run, rule) for run in done for rule in ("last", "best")
            })  # fmt: skip
    for row in table.quoted:
        for column in table.columns:
            if entry := row.entries.get(column.key):
                lines.append(_place(row, column) | _of(table, column) | _published(entry.published, None))
    return _write(_HEADER, lines)


_HEADER = [
    "row", "title", "family", "pair", "teacher", "student", "value", "n", "planned", "diverged", "failed", "refused",
    "missing", "mean_last", "std_last", "mean_best", "std_best", "rank", "published", "published_std", "gap",
    "epoch_rule", "comparable", "reason", "source", "our_choice", "task", "metric", "protocol", "deviations",
    "ci95_last", "ci95_best", "tied", "p_best", "note",
]  # fmt: skip


def _place(row: TableRow | CostRow, column: Column) -> dict[str, object]:
    """Which row and which column a line is of."""
    return {
        "row": row.key, "title": row.title, "family": row.family, "pair": column.key, "teacher": column.teacher,
        "student": column.student,
    }  # fmt: skip


def _of(table: Table, column: Column) -> dict[str, object]:
    """What is measured in a column, and under which protocol."""
    deviations = canonical(list(table.deviations))
    return {"task": column.task, "metric": column.metric, "protocol": table.protocol, "deviations": deviations}


def render_cost(cost: CostTable) -> str:
    """The figures of a cost table; spread and ratio as printed, memory in bytes, a column for each of :data:`HELD`."""
    against = reference(cost)
    header = [
        "row", "title", "family", "pair", "teacher", "student", "images_per_second", "peak_memory_bytes", "memory_kind",
        "extra_train_params", "extra_inference_params", "batch_size", "device", "steps", "inputs_per_second",
        "images_per_second_spread", "ratio", "ratio_to", *(f"{held}_bytes" for held in HELD), "first_phases",
        "machine",
    ]  # fmt: skip
    lines: list[dict[str, object]] = []
    for row in cost.rows:
        for column in cost.columns:
            entry = row.entries.get(column.key)
            figures = {key: value for key, value in vars(entry).items() if key in header} if entry else {}
            if entry and (throughput := rate(entry, against.entries.get(column.key) if against else None)):
                figures |= {"images_per_second_spread": throughput.spread, "ratio": throughput.ratio}
                figures["ratio_to"] = against.key if against and throughput.ratio is not None else None
            if entry:
                figures |= {f"{held}_bytes": value for held, value in (entry.memory_split or {}).items()}
            lines.append(_place(row, column) | figures)
    return _write(header, lines)


def _published(published: Published | None, difference: float | None) -> dict[str, object]:
    if published is None:
        return {}
    return {
        "published": published.value, "published_std": published.std, "gap": difference,
        "epoch_rule": published.epoch_rule, "comparable": published.comparable, "reason": published.reason,
        "source": published.source,
    }  # fmt: skip


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{round(value, _DECIMALS) + 0.0:.{_DECIMALS}f}" if isinstance(value, float) else str(value)


def _write(header: list[str], lines: list[dict[str, object]]) -> str:
    names = header + sorted({name for line in lines for name in line} - set(header))
    return csv_text([names, *([_text(line.get(name)) for name in names] for line in lines)])
