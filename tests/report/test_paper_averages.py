"""Averages and differences of the paper's table are of like runs, and the caption says what stands behind ±."""

from __future__ import annotations

from benchmarks.report.layouts import paper_table
from benchmarks.report.layouts.paper_table import Page
from benchmarks.report.model import Column, SeedResult, Table, TableEntry, TableRow
from benchmarks.report.table_layout import TableLayout

COLUMNS = tuple(Column(key, key, "Small", task="cifar100", metric="top1") for key in ("a", "b"))


def entry(*values: float | None) -> TableEntry:
    done = [SeedResult(i, "missing" if value is None else "done", value, value) for i, value in enumerate(values)]
    return TableEntry(tuple(done))


def shown(intervals: bool = False, **kd: TableEntry) -> TableLayout:
    plain = {"a": entry(70.0, 71.0, 72.0), "b": entry(60.0, 61.0, 62.0)}
    rows = (TableRow("student", "Student", "reference", plain), TableRow("kd", "KD", "logit", kd))
    return paper_table.layout(Table("t", "T", "Top-1", COLUMNS, rows, intervals=intervals), Page("none"))


def last_cells(layout: TableLayout) -> list[str]:
    (line,) = (line for block in layout.blocks for line in block if line.label == "KD")
    return [cell.value for cell in line.cells[-2:]]


def test_a_difference_is_that_of_the_seeds_that_both_have() -> None:
    """KD is 2 better on every seed; on b only the first has ended, and means of unlike seeds would say 1.5."""
    whole, part = entry(72.0, 73.0, 74.0), entry(62.0, None, None)
    assert last_cells(shown(a=whole, b=entry(62.0, 63.0, 64.0))) == ["68.00", "+2.00"]
    layout = shown(a=whole, b=part)
    assert last_cells(layout) == ["", "+2.00"]
    notes = dict(layout.notes)
    assert notes["Δ"].endswith("less that of Student, over the seeds that both have.")
    assert notes["Avg."] == "where a row has all columns, with the same n."
    assert last_cells(shown(a=whole, b=entry(None, None, None))) == ["", ""]


def test_the_caption_says_what_a_deviation_is_where_some_rows_have_one() -> None:
    one = {"a": entry(72.0), "b": entry(62.0)}
    rows = tuple(TableRow(key, key, "logit", one) for key in ("at", "sp", "kd"))
    plain = TableRow("student", "Student", "reference", {"a": entry(70.0, 71.0, 72.0), "b": entry(60.0, 61.0, 62.0)})
    for intervals, spread in ((False, "std"), (True, "95 % interval")):
        table = Table("t", "T", "Top-1", COLUMNS, (plain, *rows), intervals=intervals)
        (caption,) = paper_table.layout(table, Page("none")).caption
        assert f"n = 1, mean ± {spread} where there are more" in str(caption)
        alone = paper_table.layout(Table("t", "T", "Top-1", COLUMNS, rows, intervals=intervals), Page("none"))
        assert "±" not in str(alone.caption)
