"""Figures of a table: means with their n, gaps by the published value's own epoch rule, intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ..config.table_spec import MEAN, without_task
from .model import Column, Published, SeedResult, Table, TableEntry, TableRow
from .table_layout import several_tasks


@dataclass(frozen=True)
class Summary:
    """Counts of an entry's planned seeds, and mean and sample standard deviation over its `n` finished ones.

    A deviation is None for n < 2. The best-epoch figures are None unless every finished run has one: a mean over
    fewer runs than the row's n would be taken for the other.
    """

    planned: int
    n: int
    diverged: int
    failed: int
    refused: int
    missing: int
    mean_last: float | None
    std_last: float | None
    mean_best: float | None
    std_best: float | None

    def mean(self, epoch_rule: str) -> float | None:
        return {"last": self.mean_last, "best": self.mean_best}.get(epoch_rule)

    def std(self, epoch_rule: str) -> float | None:
        return {"last": self.std_last, "best": self.std_best}.get(epoch_rule)


def finished(run: SeedResult) -> bool:
    """A run counts when it is done and its figure is a number."""
    return run.status == "done" and run.last is not None and math.isfinite(run.last)


def mean_std(values: list[float]) -> tuple[float | None, float | None]:
    """Mean (None of nothing) and sample standard deviation with ddof 1 (None below two values)."""
    n = len(values)
    if not n:
        return None, None
    # By fsum, which rounds once; `statistics.stdev` computes in fractions and takes seconds for a large table.
    mean = math.fsum(values) / n
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None


def summarise(entry: TableEntry | None) -> Summary:
    runs = entry.runs if entry else ()
    done = [run for run in runs if finished(run)]
    last = [run.last for run in done if run.last is not None]
    best = [run.best for run in done if run.best is not None and math.isfinite(run.best)]
    mean_best, std_best = mean_std(best) if len(best) == len(done) else (None, None)
    diverged = sum(run.status == "diverged" for run in runs)
    refused = sum(run.status == "refused" for run in runs)
    missing = sum(run.status == "missing" for run in runs)
    return Summary(
        len(runs), len(done), diverged, len(runs) - len(done) - diverged - refused - missing, refused, missing,
        *mean_std(last), mean_best, std_best,
    )  # fmt: skip


def by_seed(entry: TableEntry | None, epoch_rule: str) -> dict[int, float]:
    """The figures of an entry's finished runs."""
    done = [run for run in (entry.runs if entry else ()) if finished(run)]
    figures = {run.seed: run.best if epoch_rule == "best" else run.last for run in done}
    return {seed: value for seed, value in figures.items() if value is not None and math.isfinite(value)}


def gap(summary: Summary, published: Published | None) -> float | None:
    """Our mean minus the published value by the same epoch rule; None where the two cannot be compared."""
    if published is None or not published.comparable:
        return None
    ours = summary.mean(published.epoch_rule)
    return None if ours is None else ours - published.value


def teacher_gap(accuracy: float | None, published: Published | None) -> float | None:
    """A teacher's last epoch, or its file, minus the published value; None where the two cannot be compared."""
    if accuracy is None or published is None or not published.comparable:
        return None
    if published.epoch_rule not in ("last", "file"):
        return None
    return accuracy - published.value


def half_width(std: float | None, n: int) -> float | None:
    """Half the width of the 95 % confidence interval of a mean of n values, by Student's t; None for n < 2."""
    if std is None:
        return None
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)


def usual_n(table: Table) -> int | None:
    """The n of most of the cells that have all their seeds, the larger of equals; None where no cell has."""
    cells = [summarise(row.entries.get(column.key)) for row in table.rows for column in table.columns]
    counts = Counter(cell.n for cell in cells if cell.n and cell.n == cell.planned)
    return max(counts, key=lambda n: (counts[n], n)) if counts else None


def unusual(summary: Summary, usual: int | None) -> bool:
    """Whether a cell's mean has another n than the caption says, or lacks some of its seeds."""
    return bool(summary.n) and not usual == summary.n == summary.planned


def with_means(
    columns: tuple[Column, ...], rows: tuple[TableRow, ...]
) -> tuple[tuple[Column, ...], tuple[TableRow, ...]]:
    """Behind the columns of each pair one for the mean over its tasks: taken per seed, so that seeds stay what varies.

    A task with two columns (MNLI) counts once, with their mean. Where a column is missing for a seed, or the method is
    not made for it, there is no mean.
    """
    if not several_tasks(columns):
        return columns, rows
    out: list[Column] = []
    entries: dict[str, dict[str, TableEntry]] = {row.key: dict(row.entries) for row in rows}

    def pair_of(column: Column) -> tuple[str, str, str]:
        """Two pairs of the same networks may differ in how the student starts."""
        return column.teacher, column.student, without_task(column.key)

    for pair in dict.fromkeys(map(pair_of, columns)):
        of_pair = [column for column in columns if pair_of(column) == pair]
        out += of_pair
        tasks = [column.task for column in of_pair]
        if len(set(tasks)) < 2:
            continue
        accuracy = _over_tasks([column.teacher_accuracy for column in of_pair], tasks)
        first, metric = of_pair[0], f"of {len(set(tasks))}"
        key = f"{without_task(first.key)}:{MEAN}"
        out.append(Column(key, first.teacher, first.student, accuracy, task=MEAN, metric=metric, titles=first.titles))
        for row in rows:
            entries[row.key][key] = _mean([row.entries.get(column.key, TableEntry()) for column in of_pair], tasks)
    return tuple(out), tuple(replace(row, entries=entries[row.key]) for row in rows)


def _over_tasks(values: list[float | None], tasks: list[str]) -> float | None:
    """The mean over tasks of the means over each task's columns; None where one is missing."""
    by_task: dict[str, list[float]] = {}
    for value, task in zip(values, tasks, strict=True):
        if value is None:
            return None
        by_task.setdefault(task, []).append(value)
    return fmean(map(fmean, by_task.values()))


def _mean(entries: list[TableEntry], tasks: list[str]) -> TableEntry:
    runs = []
    for seed in sorted({run.seed for entry in entries for run in entry.runs}):
        of_seed = [run for entry in entries for run in entry.runs if run.seed == seed]
        states = {run.status for run in of_seed}
        if len(of_seed) < len(entries) or states != {"done"}:
            worst = next((s for s in ("refused", "diverged", "failed") if s in states), "missing")
            runs.append(SeedResult(seed, worst))  # type: ignore[arg-type]
            continue
        last, best = (_over_tasks([getattr(run, rule) for run in of_seed], tasks) for rule in ("last", "best"))
        runs.append(SeedResult(seed, "done", last=last, best=best))
    return TableEntry(tuple(runs))


def whole(curves: Iterable[Sequence[float]]) -> list[Sequence[float]]:
    """Of the curves of some seeds those with as many epochs as the longest: a mean over them has one n throughout."""
    known = [curve for curve in curves if curve]
    longest = max(map(len, known), default=0)
    return [curve for curve in known if len(curve) == longest]


def mean_curve(curves: Iterable[Sequence[float]]) -> list[float]:
    """The mean after each epoch, over the seeds whose curves are :func:`whole`."""
    return [fmean(values) for values in zip(*whole(curves), strict=True)]
