"""The average relative improvement, as feature-only KD's paper prints it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.config.table_spec import load_table
from benchmarks.report.formats import latex, markdown
from benchmarks.report.layouts import efficiency
from benchmarks.report.model import Column, SeedResult, Table, TableEntry, TableRow
from kd_methods.errors import UserError


def test_average_relative_improvement_is_against_the_named_rows():
    columns = (Column("a-b", "a", "b"),)
    last = {"student": 60.0, "x": 64.0, "y": 60.3, "variant": 70.0, "ours": 66.0}
    rows = tuple(
        TableRow(key, key, "feature", {"a-b": TableEntry((SeedResult(0, "done", value, value),))})
        for key, value in last.items()
    )
    table = Table("t", "T", "Top-1", columns, rows)
    assert efficiency.ari(table, "ours", ("x", "y"), columns[0]) == pytest.approx(1.5), "y gains too little to count"
    assert efficiency.ari(table, "ours", ("y",), columns[0]) is None
    curves = {
        ("student", "a-b", 0): [50.0, 60.0],
        ("ours", "a-b", 0): [59.0, 61.0, 66.0],
        ("x", "a-b", 0): [40.0, 59.0],
    }
    assert efficiency.reached(table, curves, rows[-1], columns[0]) == ([2], 1)
    assert efficiency.reached(table, curves, rows[1], columns[0]) == ([], 1)
    page = efficiency.layout(table, curves, "ours", ("x", "y"))
    assert "never" in markdown.render(page) and "| ARI, % | 150 |" in markdown.render(page)
    row = next(line for line in latex.render(page).splitlines() if line.startswith("ARI"))
    assert row.replace(r"\%", "").count("%") == 0, "a comment would end the row"


def test_the_improvement_is_over_the_seeds_that_all_have():
    """Of the competitor the first seed alone has ended, by which it is not worse."""
    column = Column("a-b", "a", "b")
    values = {"student": (70.0, 71.0, 72.0), "ours": (72.0, 73.0, 74.0), "x": (72.0,)}
    rows = tuple(
        TableRow(key, key, "logit", {"a-b": TableEntry(tuple(SeedResult(i, "done", v, v) for i, v in enumerate(of)))})
        for key, of in values.items()
    )
    assert efficiency.ari(Table("t", "T", "Top-1", (column,), rows), "ours", ("x",), column) == pytest.approx(1.0)


def test_a_competitor_that_ends_half_a_point_above_counts_whatever_rounding_makes_of_it():
    column = Column("a-b", "a", "b")
    assert 64.49 - 63.99 < 0.5
    rows = tuple(
        TableRow(key, key, "logit", {"a-b": TableEntry((SeedResult(0, "done", value, value),))})
        for key, value in {"student": 63.99, "ours": 64.99, "x": 64.49}.items()
    )
    assert efficiency.ari(Table("t", "T", "Top-1", (column,), rows), "ours", ("x",), column) == pytest.approx(2.0)


@pytest.mark.parametrize("state", ["missing", "diverged", "failed"])
def test_nothing_is_compared_with_a_student_that_did_not_end(state):
    column = Column("a-b", "a", "b")
    rows = tuple(
        TableRow(key, key, "logit", {"a-b": TableEntry(tuple(SeedResult(i, *of) for i, of in enumerate(runs)))})
        for key, runs in {
            "student": [("done", 60.0, 60.0), (state,)],
            "kd": [("done", 66.0, 66.0), ("done", 66.0, 66.0)],
        }.items()
    )
    curves = {("student", "a-b", 0): [50.0, 60.0], ("student", "a-b", 1): [20.0]}
    curves |= {("kd", "a-b", seed): [40.0, 55.0, 66.0] for seed in (0, 1)}
    assert efficiency.reached(Table("t", "T", "Top-1", (column,), rows), curves, rows[1], column) == ([3], 1)


def test_efficiency_of_unknown_rows_is_one_line(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: feature-only\nname: mine\nefficiency: {row: feature_only, against: [nobody]}\n")
    with pytest.raises(UserError, match="efficiency: no row of the table: nobody"):
        load_table(str(file))
