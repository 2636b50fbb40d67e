"""How soon each row reaches the plain student, and how far one row is ahead of the others (ARI)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from ..model import STUDENT, Column, SeedResult, Table, TableEntry, TableRow
from ..seed_statistics import by_seed, finished
from ..table_layout import MISSING, Line, PrintedCell, Sentence, TableLayout, pair_heads
from .accuracy_table import deviation_sentence, provenance_note

GAIN = 0.5
"""Points above the plain student from which on a method counts as a competitor."""
STABLE = 15.0
"""Mean ratios outside 0 … this are called unstable, as in the public code."""

Curves = Mapping[tuple[str, str, int], list[float]]
"""The metric on the test set after each epoch, by (row, column, seed)."""


def reached(table: Table, curves: Curves, row: TableRow, column: Column) -> tuple[list[int], int]:
    """First epochs, from 1, at which a row's seeds are at the best of their plain student, and how many were asked.

    Asked are those of which both are finished.
    """
    ended = {run.seed for one in table.plain for run in _runs(one, column) if finished(run)}
    epochs, asked = [], 0
    for run in _runs(row, column):
        best = curves.get((STUDENT, column.key, run.seed))
        curve = curves.get((row.key, column.key, run.seed))
        if finished(run) and run.seed in ended and best and curve:
            asked += 1
            epochs += [epoch for epoch, value in enumerate(curve, 1) if value >= max(best)][:1]
    return epochs, asked


def _runs(row: TableRow, column: Column) -> Sequence[SeedResult]:
    return row.entries.get(column.key, TableEntry()).runs


def ari(table: Table, ours: str, against: Sequence[str], column: Column) -> float | None:
    """Mean over the competitors b of (ours - student) / (b - student) in last-epoch means, or None without any.

    Competitors are those rows of ``against`` that end at least half a point above the plain student; means are over the
    seeds that all three have.

    Source: arXiv 2511.14981, plot code of KD_wo_CE @3abceed, there with best epochs.
    """
    figures = {row.key: by_seed(row.entries.get(column.key), "last") for row in table.rows}
    ratios = []
    for key in against:
        three = [figures.get(one, {}) for one in (STUDENT, ours, key)]
        if common := three[0].keys() & three[1].keys() & three[2].keys():
            student, gained, other = (fmean(one[seed] for seed in common) for one in three)
            if round(other - student, 6) >= GAIN:  # 0.5 is no 0.4999999999999858
                ratios.append((gained - student) / (other - student))
    return fmean(ratios) if ratios else None


def layout(table: Table, curves: Curves, ours: str, against: Sequence[str]) -> TableLayout:
    """Epochs to the plain student's best, and the ARI of the row ``ours``, as a table like the one of accuracies."""
    lines = [Line("panel", "First epoch at which the plain student's best is reached")]
    for row in table.rows:
        if row.key != STUDENT:
            cells = [_epochs(*reached(table, curves, row, column)) for column in table.columns]
            lines.append(Line("row", row.title, tuple(cells)))
    titles = {row.key: row.title for row in table.rows}
    title = titles.get(ours, ours)
    compared = ", ".join(titles[key] for key in against if key in titles)
    panel = [Line("panel", f"Average relative improvement (ARI) of {title}")]
    panel.append(Line("row", "ARI, %", tuple(_ratio(ari(table, ours, against, column)) for column in table.columns)))
    ari_note = (
        "ARI",
        f"mean of the row's gain over those of {compared or 'none'}, as far as they end at least half a point "
        "above the student; last epoch; unstable outside 0 to 1500 %.",
    )
    return TableLayout(
        name=f"{table.name}-efficiency",
        title=f"{table.title}: training efficiency",
        caption=(
            Sentence(f"{table.metric}, mean over the seeds that reached it, on the test set after every epoch."),
            *deviation_sentence(table),
        ),
        heads=pair_heads(table.columns),
        blocks=(tuple(lines), tuple(panel)) if ours in titles else (tuple(lines),),
        notes=(
            ("never", "no finished seed reached it; k/n: k of n did."),
            *([ari_note] if ours in titles else []),
            *provenance_note(table),
        ),
    )


def _epochs(epochs: list[int], asked: int) -> PrintedCell:
    if not asked:
        return PrintedCell(word=MISSING)
    if not epochs:
        return PrintedCell(word="never")
    return PrintedCell(f"{fmean(epochs):.1f}", seeds="" if len(epochs) == asked else f"{len(epochs)}/{asked}")


def _ratio(value: float | None) -> PrintedCell:
    if value is None:
        return PrintedCell(word=MISSING)
    return PrintedCell(f"{100 * value:.0f}") if 0 < value < STABLE else PrintedCell(word="unstable")
