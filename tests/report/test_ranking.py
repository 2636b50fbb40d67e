"""Which rows lead, which are equal, which cannot be told apart, and what takes no part: figures known by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import report
from benchmarks.report import Column, SeedResult, Table, TableEntry, TableRow
from benchmarks.report.ranking import average_ranks, chances_of_being_best, ranking
from benchmarks.report.seed_statistics import half_width

PAIRS = ("a-b", "c-d")


def table(first: dict[str, tuple[float, ...]], second: dict[str, tuple[float, ...]] | None = None) -> Table:
    """Rows with the values of their seeds 0, 1, ... in one column or two."""
    values = {PAIRS[0]: first, **({PAIRS[1]: second} if second else {})}
    keys = dict.fromkeys(key for column in values.values() for key in column)
    rows = tuple(
        TableRow(key, key.upper(), "Logit", {pair: done(*of[key]) for pair, of in values.items() if key in of})
        for key in keys
    )
    columns = tuple(Column(pair, *pair.split("-")) for pair in values)
    return Table("t", "T", "Top-1 accuracy (%)", columns, rows)


def done(*values: float) -> TableEntry:
    return TableEntry(tuple(SeedResult(seed, "done", value, value) for seed, value in enumerate(values)))


def line(text: str, title: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"| {title} "))


def test_the_plain_student_takes_part() -> None:
    shown = table({"student": (80.0, 80.0, 80.0), "kd": (70.0, 71.0, 72.0), "sp": (60.0, 60.0, 60.0)})
    assert {row: rank for (row, _), rank in ranking(shown).ranks.items()} == {"student": 1, "kd": 2, "sp": 3}
    text = report.render(shown)
    assert "**80.00**" in line(text[".md"], "STUDENT") and "<ins>71.00</ins>" in line(text[".md"], "KD")
    assert r"\bfseries 80.00" in text[".tex"] and r"\underline{\hphantom{71.00}}" in text[".tex"]


def test_one_row_alone_has_no_best() -> None:
    assert not ranking(table({"kd": (70.0,)})).ranks


def test_ties_are_marked() -> None:
    """As printed: 70.004 and 70.0 are one mean; below the second place nobody looks."""
    shown = table({"kd": (70.004,), "at": (70.0,), "sp": (69.0,), "rkd": (68.0,), "pkt": (68.0,)})
    ranked = ranking(shown)
    assert [ranked.ranks[row, "a-b"] for row in ("kd", "at", "sp", "rkd", "pkt")] == [1, 1, 2, 3, 3]
    assert ranked.tied == {("kd", "a-b"), ("at", "a-b")}
    text = report.render(shown)
    assert line(text[".md"], "AT") == "| AT | **70.00**<sup>=</sup> |" and "equal as printed" in text[".md"]
    assert r"\bfseries 70.00{$^{{=}}$}" in text[".tex"] and "<sup>" not in line(text[".md"], "RKD")


def test_another_n_does_not_compete() -> None:
    shown = table({"kd": (70.0, 71.0, 72.0), "at": (69.0, 69.5, 70.0), "dkd": (90.0,)})
    ranked = ranking(shown)
    assert ranked.ranks == {("kd", "a-b"): 1, ("at", "a-b"): 2} and ranked.left_out == {("dkd", "a-b"): 1}
    text = report.render(shown)[".md"]
    assert line(text, "DKD") == "| DKD | 90.00 (n=1) |"
    assert "Not ranked, as n differs from the rest of the column: DKD, a–b (n=1)." in text  # noqa: RUF001


def unfinished(entry: TableEntry) -> TableEntry:
    return TableEntry((*entry.runs, SeedResult(len(entry.runs), "missing")))


def test_a_paper_s_table_names_what_is_not_ranked_and_nothing_else() -> None:
    """Of a column in which most rows lack a seed the whole row is the one that cannot be ranked."""
    shown = table({"kd": (70.0, 71.0, 72.0), "at": (69.0, 69.5), "sp": (68.0, 68.5), "rkd": (67.0, 67.5)})
    short = tuple(replace(r, entries={key: unfinished(e) for key, e in r.entries.items()}) for r in shown.rows[1:])
    text = report.render(replace(shown, rows=(shown.rows[0], *short)))[".tex"]
    assert r"\bfseries 69.25(35){$^{2/3}$}" in text and "KD & 71.00(100) " in text and "of k seeds" not in text
    assert "rest of the column:} KD, a" in text and "AT, a" not in text and "of n planned seeds k are finished." in text


def test_a_column_of_one_n_is_ranked_whatever_the_others_have() -> None:
    text = report.render(table({"kd": (70.0, 71.0), "at": (69.0, 69.0)}, {"kd": (60.0,), "at": (50.0,)}))[".tex"]
    assert r"\bfseries 60.00{$^{1}$}" in text and "of k seeds, all that were planned." in text
    assert "ot ranked" not in text


@pytest.mark.parametrize(
    ("cells", "left"), [({"kd": (1.0,), "at": (2.0, 2.0)}, {"kd"}), ({"kd": (1.0,), "at": (2.0,), "x": (3, 3)}, {"x"})]
)
def test_the_n_of_most_cells_is_ranked_and_of_equals_the_larger(
    cells: dict[str, tuple[float, ...]], left: set[str]
) -> None:
    assert {row for row, _ in ranking(table(cells)).left_out} == left


def test_the_test_by_hand() -> None:
    """Against the best: differences 1, 2, 3 have mean 2 and deviation 1, t = 2 sqrt 3, p = 0.0371 with 2 degrees."""
    first, second = (70.0, 71.0, 72.0), (69.0, 69.0, 69.0)
    p = chances_of_being_best([first, second], 2)
    assert p[0] == pytest.approx(1 - 0.0371, abs=2e-4) and p[1] == pytest.approx(0.0371, abs=2e-4)
    third = chances_of_being_best([first, second, (1.0, 2.0, 3.5)], 2)
    assert third[1] == pytest.approx(2 * 0.0371, abs=4e-4), "two comparisons"


def test_rows_that_always_differ_alike_are_told_apart_by_more_than_rounding() -> None:
    assert chances_of_being_best([(80.0,) * 3, (60.0,) * 3], 2)[1] < 1e-5
    assert chances_of_being_best([(80.004,) * 3, (80.0,) * 3], 2)[1] > 0.05
    assert chances_of_being_best([(80.0,) * 3, (80.0,) * 3], 2) == [0.5, 0.5]


def test_the_truly_best_is_seldom_excluded() -> None:
    """Of rows that are all equally good, one named beforehand is excluded in at most 5 % of tables."""
    import numpy as np

    generator = np.random.default_rng(0)
    tables = generator.normal(size=(2000, 6, 3)) + generator.normal(size=(2000, 1, 3))
    excluded = np.mean([chances_of_being_best(values, 6)[0] <= 0.05 for values in tables])
    assert 0.01 < excluded <= 0.05


def test_what_cannot_be_told_from_the_best_is_marked() -> None:
    shown = table({"kd": (70.0, 71.0, 72.0), "at": (69.9, 70.9, 71.0), "sp": (60.0, 61.0, 62.1)})
    ranked = ranking(shown)
    assert (
        ranked.undecided(("at", "a-b")) and not ranked.undecided(("sp", "a-b")) and not ranked.undecided(("kd", "a-b"))
    )
    text = report.render(shown)
    assert "≈" in line(text[".md"], "AT") and "≈" not in line(text[".md"], "SP") + line(text[".md"], "KD")
    assert "paired t test" in text[".md"] and r"{\approx}" in text[".tex"]


def test_with_fewer_than_three_seeds_nothing_is_tested() -> None:
    shown = table({"kd": (70.0, 71.0), "at": (69.9, 70.9)})
    assert not ranking(shown).tested
    text = report.render(shown)[".md"]
    assert "nothing is tested" in text and "≈" not in text
    other = {"a-b": TableEntry(tuple(SeedResult(seed, "done", 70.0, 70.0) for seed in (3, 4, 5)))}
    shown = table({"kd": (70.0, 71.0, 72.0)})
    unpaired = replace(shown, rows=(*shown.rows, TableRow("at", "AT", "Logit", other)))
    assert ranking(unpaired).ranks and not ranking(unpaired).tested, "other seeds are no pairs"


def test_intervals_on_request() -> None:
    assert half_width(1.0, 3) == pytest.approx(2.484, abs=1e-3) and half_width(None, 1) is None
    shown = table({"kd": (70.0, 71.0, 72.0), "at": (69.0, 69.5, 70.0)})
    text = report.render(replace(shown, intervals=True))[".md"]
    assert "**71.00** ± 2.48" in text and "95 % confidence interval (Student's t)" in text and "deviation" not in text


def test_average_rank_on_request() -> None:
    """Over the columns, of rows that are in all of them; equal rows share the mean of their ranks."""
    shown = table({"kd": (3.0,), "at": (2.0,), "sp": (2.0,), "x": (9.0,)}, {"kd": (1.0,), "at": (3.0,), "sp": (2.0,)})
    assert average_ranks(shown, ranking(shown)) == {"kd": 2.0, "at": 1.75, "sp": 2.25}
    text = report.render(replace(shown, average_rank=True))
    assert line(text[".md"], "AT").endswith("| 1.8 |") and line(text[".md"], "X").endswith("| -- | -- |")
    assert "Average<br>rank" in text[".md"] and "Average" in text[".tex"]
    counts = {row.count("|") for row in text[".md"].splitlines() if row.startswith("|")}
    assert counts == {5}, "every line has all columns"
