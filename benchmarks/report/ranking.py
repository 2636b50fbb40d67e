"""Which rows lead in a column of a table, which of them are equal, and which cannot be told from the best."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..config.table_spec import MEAN
from .model import DECIMALS, RowColumn, Table
from .seed_statistics import by_seed, summarise

LEVEL = 0.05
"""The chance at which the truly best row of a column is allowed to look worse than the best."""
FEWEST = 3
"""Seeds that a test takes."""


@dataclass(frozen=True)
class Ranking:
    """How the means of each column compare. Ranked are cells with the n that most cells of their column have.

    ranks      1 for the best printed mean; what is printed alike shares a rank, and the next mean has the next one
    tied       cells with the first or second rank that share it
    left_out   n of the cells that are not ranked, because theirs is another one
    p_values   by :func:`chances_of_being_best`, in the columns that were tested
    """

    ranks: Mapping[RowColumn, int]
    tied: frozenset[RowColumn]
    left_out: Mapping[RowColumn, int]
    p_values: Mapping[RowColumn, float]

    def marked(self, place: RowColumn) -> int:
        """1 for a best and 2 for a second best mean of a column, else 0."""
        rank = self.ranks.get(place, 0)
        return rank if rank <= 2 else 0

    def undecided(self, place: RowColumn) -> bool:
        """Whether a cell below the best of its column cannot be told from it."""
        return self.ranks.get(place) != 1 and self.p_values.get(place, 0.0) > LEVEL

    @property
    def tested(self) -> set[str]:
        """The columns that were tested."""
        return {column for _, column in self.p_values}


def ranking(table: Table) -> Ranking:
    """Rank the rows of a table, the plain student among them; a column in which only one can be ranked has no best."""
    ranks: dict[RowColumn, int] = {}
    tied: set[RowColumn] = set()
    left_out: dict[RowColumn, int] = {}
    p_values: dict[RowColumn, float] = {}
    for column in table.columns:
        cells = {row.key: row.entries.get(column.key) for row in table.rows}
        summaries = {key: summarise(entry) for key, entry in cells.items()}
        means = {key: mean for key, cell in summaries.items() if (mean := cell.mean("last")) is not None}
        counts = Counter(summaries[key].n for key in means)
        n = max(counts, key=lambda n: (counts[n], n), default=0)
        left_out |= {(key, column.key): summaries[key].n for key in means if summaries[key].n != n}
        printed = {key: round(mean, DECIMALS) for key, mean in means.items() if summaries[key].n == n}
        if len(printed) < 2:
            continue
        order = sorted(set(printed.values()), reverse=True)
        shared = Counter(printed.values())
        ranks |= {(key, column.key): order.index(mean) + 1 for key, mean in printed.items()}
        tied |= {(key, column.key) for key, mean in printed.items() if shared[mean] > 1 and mean in order[:2]}
        runs = [by_seed(cells[key], "last") for key in printed]
        if n >= FEWEST and len({tuple(values) for values in runs}) == 1:
            chances = chances_of_being_best([list(values.values()) for values in runs])
            p_values |= {(key, column.key): p for key, p in zip(printed, chances, strict=True)}
    return Ranking(ranks, frozenset(tied), left_out, p_values)


def chances_of_being_best(values: Sequence[Sequence[float]], decimals: int = DECIMALS) -> Sequence[float]:
    """For each of k rows the p value of "it is the best of them", by one-sided paired t tests.

    The hypothesis is rejected where some other row is significantly above it. That other one is not known beforehand,
    hence k - 1 comparisons and Bonferroni's factor. No correction is needed over the k hypotheses, as at most one of
    them (or rows that are exactly equal) is true: with a chance of 95 % or more, the truly best row is among those that
    are not rejected at 5 %. A stepwise correction (Holm) would lose that, for it spends what it gains by rejecting the
    others on the very comparison that matters.

    Seeds are what pairs: a seed decides the order of the data, and how the student starts. A t test takes the
    differences between two rows to be normal, which a handful of seeds cannot show. Tests that do not need that can
    find nothing with so few: the least p value of signs, ranks (Wilcoxon) or permutations is 2^-n, 0.125 for three
    seeds and 0.03 for five, before any correction. The spread of a difference is taken to be at least what rounding to
    the printed decimals makes of none.

    Args:
        values: (k, n) metrics of k rows over the same n seeds.
        decimals: of the printed means.

    Returns:
        k adjusted p values, at most 1.
    """
    import numpy as np
    from scipy.special import stdtr

    array = np.asarray(values, dtype=float)
    k, n = array.shape
    ahead = array[:, None, :] - array[None, :, :]
    spread = np.maximum(ahead.std(axis=-1, ddof=1), 10.0**-decimals / math.sqrt(6))
    p = stdtr(n - 1, -ahead.mean(axis=-1) / (spread / math.sqrt(n)))
    np.fill_diagonal(p, 1.0)
    return [float(value) for value in np.minimum(1.0, (k - 1) * p.min(axis=0))]


def average_ranks(table: Table, ranked: Ranking) -> dict[str, float]:
    """The mean over columns of each row's rank, of the rows that are ranked in every column; 1 is the best.

    Rows that are printed alike share the mean of their ranks. Columns of means over tasks do not count.
    """
    columns = [column.key for column in table.columns if column.task != MEAN]
    columns = [key for key in columns if any(column == key for _, column in ranked.ranks)]
    rows = [row.key for row in table.rows if columns and all((row.key, key) in ranked.ranks for key in columns)]
    by_column = []
    for key in columns:
        counts = Counter(ranked.ranks[row, key] for row in rows)
        before = {rank: sum(count for other, count in counts.items() if other < rank) for rank in counts}
        by_column.append({row: before[r := ranked.ranks[row, key]] + (counts[r] + 1) / 2 for row in rows})
    return {row: fmean(of_column[row] for of_column in by_column) for row in rows}
