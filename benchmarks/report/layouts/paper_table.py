"""An accuracy table as a paper prints it: short caption, pairs side by side, average and difference, costs if asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from ...config.table_spec import MEAN
from ..model import DECIMALS, Column, CostTable, Published, Table, TableRow
from ..ranking import average_ranks, ranking
from ..seed_statistics import by_seed, summarise, usual_n
from ..table_layout import (
    BEST,
    BLANK,
    CHOICE,
    MISSING,
    NOT_FOR,
    TIMES,
    UNKNOWN,
    Line,
    PrintedCell,
    Sentence,
    TableLayout,
    cut,
    pair_heads,
    signed,
)
from . import accuracy_table as full
from .cost_table import MEDIAN, MIB, number, over_columns, reference, unit

TITLE, NAME = 80, 40
"""Characters of a title and of other names that leave a caption at two lines; the appendix has all in full."""


@dataclass(frozen=True)
class Page:
    """What is shown beside the means.

    published  a small column with the literature's values at each pair, or none
    highlight  the key of the reader's own row
    costs      throughput and memory at each row
    style      paper: everything but the table in a file of its own; full: in the same file
    intervals, average_rank  as the table has them, in all formats
    figures    figures beside the table, as PDF and PNG
    """

    published: Literal["column", "none"] = "column"
    highlight: str = ""
    costs: bool = False
    style: Literal["paper", "full"] = "paper"
    intervals: bool = False
    average_rank: bool = False
    figures: bool = False


PAPER = Page()
"""The usual page."""


def layout(table: Table, page: Page, cost: CostTable | None = None) -> TableLayout:
    """The paper's table; ``cost`` is what its rows cost, where it is to be shown."""
    printer = _Printer(table, page, cost if page.costs else None)
    blocks = [(printer.teacher(), *map(printer.row, table.plain))]
    blocks += [(Line("heading", family), *map(printer.row, rows)) for family, rows in table.families.items()]
    if table.quoted and printer.published:
        blocks.append((Line("heading", "published, not run here"), *map(printer.row, table.quoted)))
    return TableLayout(
        name=table.name,
        title=cut(table.title, TITLE),
        caption=(Sentence(_caption(table)),),
        heads=printer.heads(),
        blocks=tuple(blocks),
        notes=tuple(printer.notes(blocks)),
    )


class _Printer:
    """Lines of one table: for each pair ours and the published value, then average and difference, then costs."""

    def __init__(self, table: Table, page: Page, cost: CostTable | None) -> None:
        self.table, self.page, self.cost = table, page, cost
        self.ranking, self.n = ranking(table), usual_n(table)
        self.ranks = average_ranks(table, self.ranking) if table.average_rank else None
        self.published = page.published == "column" and bool(full.published_values(table))
        self.marks = full.dagger_marks(table)
        self.compared = _of_one_unit(table.columns)
        self.averaged = len(self.compared) == len(table.columns) > 1
        self.plain = next(iter(table.plain), None)
        self.differenced = self.plain is not None and bool(self.compared)
        self.costs = {row.key: row for row in cost.rows} if cost else {}

    def heads(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        columns = self.table.columns
        lines = list(pair_heads(columns))
        if self.published:
            lines.append((BLANK, ()))
        heads = []
        for i, (label, texts) in enumerate(lines):
            beside = [""] if self.published else []
            of_pairs = [word for text in texts for word in (text or BLANK, *beside)]
            further = self._further("first" if i == 0 else "last" if i == len(lines) - 1 else "")
            heads.append((label, (*(of_pairs or ["ours", "publ."] * len(columns)), *further)))
        return tuple(heads)

    def _further(self, line: str = "") -> list[str]:
        """Heads of what stands behind the pairs: names in the first line, units in the last one."""
        heads = [text if line == "first" else BLANK for text in self._averaged_heads()]
        if self.cost:
            against = reference(self.cost)
            last = [unit(self.cost), f"{TIMES} {against.title}" if against else BLANK, "MiB"]
            heads += {"first": ["Cost", "", ""], "last": last}.get(line, [BLANK] * 3)
        return heads

    def _averaged_heads(self) -> list[str]:
        shown = {"Avg.": self.averaged, "Δ": self.differenced, "Rank": self.ranks is not None}
        return [head for head, is_shown in shown.items() if is_shown]

    def teacher(self) -> Line:
        cells = list[PrintedCell]()
        for column in self.table.columns:
            value = column.teacher_accuracy
            cells.append(PrintedCell(word=MISSING) if value is None else PrintedCell(f"{value:.{DECIMALS}f}"))
            cells += self._published(column.teacher_published)
        return Line("row", "Teacher", (*cells, *[PrintedCell()] * len(self._further())))

    def row(self, row: TableRow) -> Line:
        cells: list[PrintedCell] = []
        for column in self.table.columns:
            entry = row.entries.get(column.key)
            summary = summarise(entry)
            measured = full.measured_cell(self.table, summary, self.n, self.ranking, (row.key, column.key))
            cells.append(PrintedCell() if row in self.table.quoted else measured)
            cells += self._published(entry.published if entry else None)
        return Line(
            "row",
            row.title,
            (*cells, *self._averages(row), *self._cost(row)),
            CHOICE if row.our_choice else "",
            cites=row.cites,
            highlight=row.key == self.page.highlight,
        )

    def _published(self, value: Published | None) -> list[PrintedCell]:
        if not self.published:
            return []
        cell = full.published_cell(value, None, self.marks) if value else PrintedCell()
        return [replace(cell, std="")]

    def _averages(self, row: TableRow) -> list[PrintedCell]:
        average = self._average(row)
        cells = list[PrintedCell]()
        if self.averaged:
            cells.append(PrintedCell() if average is None else PrintedCell(f"{average:.{DECIMALS}f}"))
        if self.plain and self.differenced:
            difference = None if row is self.plain else self._difference(row, self.plain)
            cells.append(PrintedCell() if difference is None else PrintedCell(signed(difference)))
        if self.ranks is not None:
            cells.append(PrintedCell() if row in self.table.quoted else full.rank_cell(self.ranks.get(row.key)))
        return cells

    def _average(self, row: TableRow) -> float | None:
        """Over the columns of one unit; None where one has no mean or another n, or none are of one unit."""
        summaries = [summarise(row.entries.get(c.key)) for c in self.compared]
        means = [mean for one in summaries if (mean := one.mean("last")) is not None]
        alike = len(means) == len(summaries) and len({one.n for one in summaries}) == 1
        return fmean(means) if alike else None

    def _counts(self, row: TableRow) -> set[int]:
        """The n of its columns, short of none."""
        return {n for column in self.compared if (n := summarise(row.entries.get(column.key)).n)}

    def _difference(self, row: TableRow, plain: TableRow) -> float | None:
        """The mean over the columns of one unit of the differences over the seeds that both have there."""
        of_columns = []
        for column in self.compared:
            ours, theirs = (by_seed(one.entries.get(column.key), "last") for one in (row, plain))
            if not (common := ours.keys() & theirs.keys()):
                return None
            of_columns.append(fmean(ours[seed] - theirs[seed] for seed in common))
        return fmean(of_columns)

    def _uneven(self, plain: TableRow) -> bool:
        """Whether some row has not the plain student's seeds."""
        seeds = [
            [by_seed(row.entries.get(column.key), "last").keys() for column in self.compared] for row in self.table.rows
        ]
        theirs = seeds[self.table.rows.index(plain)]
        return any(ours and ours != known for row in seeds for ours, known in zip(row, theirs, strict=True))

    def _cost(self, row: TableRow) -> list[PrintedCell]:
        if not self.cost:
            return []
        rate_and_peak = over_columns(self.cost, self.costs[row.key]) if row.key in self.costs else None
        if rate_and_peak is None:
            return [PrintedCell(word=MISSING) if row.key in self.costs else PrintedCell()] * 3
        rate, peak = rate_and_peak
        return [
            PrintedCell(number(rate.value)),
            PrintedCell(word=MISSING) if rate.ratio is None else PrintedCell(f"{rate.ratio:.2f}"),
            PrintedCell(word=MISSING) if peak is None else PrintedCell(f"{peak / MIB:.0f}"),
        ]

    def notes(self, blocks: Sequence[Sequence[Line]]) -> Iterator[tuple[str, str]]:
        """What the signs mean that stand in the table, and no other."""
        cells = [cell for block in blocks for line in block for cell in line.cells]
        marks, words, seeds = ({getattr(cell, name) for cell in cells} for name in ("marks", "word", "seeds"))
        yield from full.ranking_marks(self.ranking, self.ranks is not None)
        yield from full.unranked(self.table, self.ranking)
        if any(count and "/" not in count for count in seeds):
            yield "k", "of k seeds, all that were planned."
        if any("/" in count for count in seeds):
            yield "k/n", "of n planned seeds k are finished."
        if self.averaged and any(self._average(row) is None and self._counts(row) for row in self.table.rows):
            yield "Avg.", "where a row has all columns, with the same n."
        if self.plain and self.differenced:
            of_tasks = self.compared[0].task == MEAN
            over = "average" if self.averaged else "mean over tasks" if of_tasks else "mean"
            pairs = ", over all pairs" if of_tasks and len(self.compared) > 1 else ""
            seeds_of = ", over the seeds that both have" if self._uneven(self.plain) else ""
            yield "Δ", f"{over}{pairs} less that of {self.plain.title}{seeds_of}."
        if any(line.mark for block in blocks for line in block):
            yield CHOICE, "with settings of our own choice."
        if self.published:
            best = f" ({BEST}: of the best epoch)" if BEST in marks else ""
            stated = any(value.std is not None for _, value in full.published_values(self.table))
            without = "; deviations that are stated beside it are in the Markdown page and the CSV" if stated else ""
            yield "publ.", f"the value in the literature{best}{without}."
        if UNKNOWN in marks:
            yield UNKNOWN, "epoch not stated."
        for reason, mark in self.marks.items():
            if mark in marks:
                yield mark, f"not comparable: {reason}."
        if any(word.startswith(("div.", "fail.")) for word in words):
            yield "div., fail.", "diverged or failed."
        if NOT_FOR in words:
            yield NOT_FOR, "not made for the pair."
        if MISSING in words:
            yield MISSING, "missing."
        if self.cost:
            kinds = {entry.memory_kind for row in self.cost.rows for entry in row.entries.values()}
            over = "over all pairs, greatest peak" if len(self.cost.columns) > 1 else MEDIAN
            yield "Cost", f"{over}; memory: {', '.join(sorted(kinds))}."


def _of_one_unit(columns: Sequence[Column]) -> Sequence[Column]:
    """The columns over which an average says something: those of means over tasks, else all if of one task and metric.

    Empty where there are none such.
    """
    means = [column for column in columns if column.task == MEAN]
    chosen = means or columns
    return chosen if len({(column.task, column.metric) for column in chosen}) == 1 else ()


def _caption(table: Table) -> str:
    """What is shown, of how many seeds, under which protocol, and whether that is the paper's."""
    n, spread = usual_n(table), "95 % interval" if table.intervals else "std"
    if not any(summarise(entry).n for row in table.rows for entry in row.entries.values()):
        seeds = "no run has finished yet"
    elif n == 1:
        several = any(summarise(entry).n > 1 for row in table.rows for entry in row.entries.values())
        seeds = f"n = 1, mean ± {spread} where there are more" if several else "n = 1"
    else:
        seeds = f"mean ± {spread}, n = {n}" if n else f"mean ± {spread} over n seeds"
    protocol = f"; protocol {cut(table.protocol, NAME)}" if table.protocol else ""
    deviating = "; not the paper's protocol" if table.deviations else ""
    return f"{cut(table.metric, NAME)}, {seeds}, last epoch{protocol}{deviating}."
