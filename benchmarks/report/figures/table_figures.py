"""Figures of a table: training curves, accuracy against cost, memory, best and last epoch, ours and published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ...config.table_spec import MEAN, METRICS, without_task
from ..layouts.cost_table import MIB, machines, rate, reference, unit
from ..model import HELD, Column, CostTable, Table
from ..seed_statistics import gap, mean_curve, summarise, whole
from ..table_layout import on_task
from .cost_figures import accuracy
from .drawing import COLOURS, DOT, above, beside, figure, filled, look, plain, write

Curves = Mapping[tuple[str, str, int], list[float]]
"""The metric after each epoch, by (row, column, seed)."""

LINES = 8
"""Rows that one figure of curves can tell apart; a table of more has several."""


def draw(table: Table, curves: Curves, cost: CostTable | None, folder: Path) -> list[Path]:
    """Write all figures of a table into ``folder`` as PDF and PNG; returns their paths."""
    return [
        file
        for name, fig in _figures(table, curves, cost)
        for file in write(fig, folder / f"{table.name}-{name.replace('/', '-')}")  # a network's name may have one
    ]


def _figures(table: Table, curves: Curves, cost: CostTable | None) -> Iterator[tuple[str, Any]]:
    """(name, figure) of what the table has something for."""
    known = {(row, column) for (row, column, _), values in curves.items() if values}
    for column in table.columns:
        rows = [row for row in table.rows if (row.key, column.key) in known]
        for start in range(0, len(rows), LINES):
            page = f"-{start // LINES + 1}" if len(rows) > LINES else ""
            titles = {row.key: plain(row.title) for row in rows[start : start + LINES]}
            yield f"curves-{column.key}{page}", _curves(table, curves, column, titles)
        if cost and (points := _against_cost(table, cost, column)):
            yield (
                f"cost-{column.key}",
                accuracy(points, f"training, {unit(cost)}", plain(_metric(table, column)), cheaper=-1),
            )
        if cost and column in cost.columns and any(row.entries.get(column.key) for row in cost.rows):
            yield f"memory-{column.key}", _memory(cost, column)
    if differences := _best_less_last(table):
        yield "best-last", _best_last(differences)
    metrics = dict.fromkeys(_metric(table, column) for column in table.columns)
    for metric in metrics:
        columns = [column for column in table.columns if _metric(table, column) == metric]
        if pairs := _beside_published(table, columns):
            yield f"published-{columns[0].metric}" if len(metrics) > 1 else "published", _published(metric, pairs)


def _metric(table: Table, column: Column) -> str:
    """What a column shows, in words; the table's own words hold for all of its columns."""
    if len({(one.metric, one.task) for one in table.columns}) == 1:
        return table.metric
    return METRICS.get(column.metric, f"mean {column.metric}" if column.task == MEAN else column.metric)


def _curves(table: Table, curves: Curves, column: Column, titles: Mapping[str, str]) -> Any:
    """The mean over seeds, and their sample deviation as a band."""
    fig, (axes,) = figure()
    for i, (key, title) in enumerate(titles.items()):
        seeds = whole(values for place, values in curves.items() if place[:2] == (key, column.key))
        means, style = mean_curve(seeds), look(i)
        epochs = range(1, len(means) + 1)
        axes.plot(epochs, means, label=title, markevery=max(1, len(means) // 6), **style)
        if len(seeds) > 1:
            stds = [stdev(values) for values in zip(*seeds, strict=True)]
            low, high = ([m + sign * s for m, s in zip(means, stds, strict=True)] for sign in (-1, 1))
            axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)
    pair = f"{column.teacher_title} to {column.student_title}{on_task(column, table.columns)}"
    axes.set_xlabel(plain(f"epoch, {pair}"))
    axes.set_ylabel(plain(_metric(table, column)))
    beside(axes)
    return fig


def _against_cost(table: Table, cost: CostTable, column: Column) -> dict[str, tuple[float, float]]:
    against = reference(cost)
    base = against.entries.get(column.key) if against else None
    points, usual = {}, machines(cost)[0]
    for row in cost.rows:
        measured = row.entries.get(column.key)
        throughput = rate(measured, base) if measured and measured.machine == usual else None
        entry = next((one.entries.get(column.key) for one in table.rows if one.key == row.key), None)
        mean = summarise(entry).mean("last")
        if throughput and mean is not None:
            points[plain(row.title)] = (throughput.value, mean)
    return points


def _memory(cost: CostTable, column: Column) -> Any:
    """The peak of each row by what makes it up, or as a whole where that is not known."""
    entries = {plain(row.title): entry for row in cost.rows if (entry := row.entries.get(column.key))}
    fig, (axes,) = figure(height=0.9 + 0.13 * len(entries))
    left = [0.0] * len(entries)
    held = HELD if all(entry.memory_split for entry in entries.values()) else ("peak",)
    for i, word in enumerate(held):
        values = [
            (entry.memory_split or {}).get(word, entry.peak_memory_bytes or 0) / MIB for entry in entries.values()
        ]
        axes.barh(list(entries), values, left=left, label=word, **filled(i))
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelsize=5.5, length=0)
    kinds = ", ".join(sorted({entry.memory_kind for entry in entries.values()}))
    axes.set_xlabel(f"peak memory, MiB ({kinds})")
    above(axes, 3)
    return fig


def _best_less_last(table: Table) -> dict[str, list[float]]:
    """Best less last epoch of every finished run, by title; where a run has several metrics, in that named first."""
    first: dict[tuple[str, ...], Column] = {}
    for column in table.columns:
        if column.task != MEAN:
            first.setdefault((column.teacher, column.student, without_task(column.key), column.task), column)
    by_title: dict[str, list[float]] = {}
    for row in table.rows:
        runs = [run for column in first.values() if (entry := row.entries.get(column.key)) for run in entry.runs]
        values = [run.best - run.last for run in runs if run.last is not None and run.best is not None]
        if values:
            by_title[plain(row.title)] = values
    return by_title


def _best_last(differences: Mapping[str, list[float]]) -> Any:
    """What reading a run at its best epoch on the test set adds: a bar for each run, a dot for the mean."""
    fig, (axes,) = figure(height=0.75 + 0.13 * len(differences))
    for i, values in enumerate(differences.values()):
        named = ("a run", "their mean") if not i else ("", "")
        axes.plot(values, [i] * len(values), "|", color=COLOURS[1], markersize=5, label=named[0])
        axes.plot(fmean(values), i, "o", color=COLOURS[2], markersize=DOT, label=named[1])
    axes.set_yticks(range(len(differences)), list(differences), fontsize=5.5)
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.set_xlabel("best less last epoch, points")
    above(axes, 2)
    return fig


def _beside_published(table: Table, columns: Sequence[Column]) -> list[tuple[float, float, bool]]:
    """(published, ours by the same epoch rule, whether the two may be compared) of every cell that has both."""
    pairs = []
    for row in table.rows:
        for column in columns:
            entry = row.entries.get(column.key)
            if not entry or not entry.published:
                continue
            summary = summarise(entry)
            ours = summary.mean(entry.published.epoch_rule) or summary.mean("last")
            if ours is not None:
                pairs.append((entry.published.value, ours, gap(summary, entry.published) is not None))
    return pairs


def _published(metric: str, pairs: list[tuple[float, float, bool]]) -> Any:
    fig, (axes,) = figure(height=2.6)
    low, high = min(min(p, o) for p, o, _ in pairs), max(max(p, o) for p, o, _ in pairs)
    room = 0.05 * (high - low) or 1.0
    ends = [low - room, high + room]
    axes.plot(ends, ends, color="0.5", linewidth=0.8, zorder=1)
    for comparable, label, style in (
        (True, "comparable", {"color": COLOURS[1], "zorder": 3}),  # few, and above the many
        (False, "not comparable", {"color": COLOURS[2], "fillstyle": "none", "zorder": 2}),
    ):
        chosen = [(published, ours) for published, ours, same in pairs if same is comparable]
        if chosen:
            axes.plot(*zip(*chosen, strict=True), "o" if comparable else "s", label=label, markersize=DOT, **style)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_aspect("equal")
    axes.set_xlabel(f"published {metric}")
    axes.set_ylabel("ours")
    above(axes)
    return fig
