"""Verdicts: each by figures known by hand, like with like only, and the count of what was reproduced."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers.manifests import PAIR, edited, finish, paper

from benchmarks.cli.main import cli
from benchmarks.report import verdicts as judging
from benchmarks.report.collect import collect
from benchmarks.report.model import Published, SeedResult, TableEntry
from benchmarks.report.seed_statistics import summarise
from benchmarks.report.verdicts import RULE, as_csv, frame, judged, of_table, text
from benchmarks.store import manifest
from benchmarks.store.runs import Store

TABLE_FOLDER = "table1-paper"


def entry(*last: float, lost: str = "") -> TableEntry:
    runs = [SeedResult(seed, "done", value, value + 1.0) for seed, value in enumerate(last)]
    return TableEntry((*runs, *[SeedResult(9, lost)] * bool(lost)))  # type: ignore[arg-type]


def published(value: float, rule: str = "last", **facts: Any) -> Published:
    return Published(value, None, "a repository @abc", rule, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("last", "value", "word"),
    [
        ((70.0, 70.1, 70.2), 70.4, "reproduced"),  # a gap of 0.3, at which the bound lies
        ((70.0, 70.1, 70.2), 69.8, "reproduced"),
        ((70.0, 70.1, 70.2), 70.41, "not reproduced"),  # deviation 0.1: two of them are less than 0.31
        ((69.0, 70.0, 71.0), 71.1, "reproduced"),  # deviation 1, standard error 0.577: a gap of 1.1 is within two
        ((69.0, 70.0, 71.0), 71.2, "within spread"),
        ((69.0, 70.0, 71.0), 72.0, "within spread"),
        ((69.0, 70.0, 71.0), 67.9, "not reproduced"),
        ((70.0, 70.0), 70.0, "preliminary"),
        ((70.0,), 90.0, "preliminary"),
        ((), 70.0, "no result"),
    ],
)
def test_the_rule(last: tuple[float, ...], value: float, word: str) -> None:
    assert judged(summarise(entry(*last)), published(value))[0] == word


def test_the_published_values_own_epoch_rule_counts() -> None:
    summary = summarise(entry(70.0, 70.0, 70.0))
    assert judged(summary, published(71.0, "best")) == ("reproduced", "")
    assert judged(summary, published(71.0, "last"))[0] == "not reproduced"
    assert judged(summary, published(70.0, "unknown")) == (
        "not comparable", "the published value's epoch rule is not known"
    )  # fmt: skip


def test_unlike_is_not_compared_and_lost_seeds_are_told() -> None:
    other = published(70.0, comparable=False, reason="another teacher")
    assert judged(summarise(entry(70.0, 70.0, 70.0)), other) == ("not comparable", "another teacher")
    lost = summarise(entry(70.0, 70.0, 70.0, lost="diverged"))
    assert judged(lost, published(70.0)) == ("reproduced", "of 4 seeds 1 diverged")
    assert judged(summarise(entry(lost="diverged")), published(70.0)) == ("no result", "1 diverged")
    assert judged(summarise(entry(lost="refused")), published(70.0)) == ("no result", "the method is not for this pair")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three seeds of the student at what is published for it, two of KD, and DKD far below."""
    old = paper()
    cells = [cell.model_copy(update={"seed": 2, "key": f"{cell.row}-2-{'0' * 20}"[:20]}) for cell in old.cells[::2]]
    shown = old.model_copy(update={"cells": (*old.cells, *(cell for cell in cells if cell.row != "kd"))})
    finish(tmp_path, shown, {"student": (68.86, 69.5), "kd": (70.5, 70.7), "dkd": (60.0, 61.0)})
    manifest.save(tmp_path, TABLE_FOLDER, shown)
    return tmp_path


def test_a_table_of_a_store_is_judged(store: Path) -> None:
    by_row = {one.row: one for one in of_table(store, TABLE_FOLDER, pytest.fail)}
    assert {row: one.words for row, one in by_row.items()} == {
        "student": "reproduced", "kd": "preliminary, n = 2", "dkd": "not reproduced"
    }  # fmt: skip
    student, dkd = by_row["student"], by_row["dkd"]
    assert (student.published, student.n, student.pair) == (69.06, 3, PAIR) and student.gap == pytest.approx(0.0)
    assert dkd.epoch_rule == "best" and dkd.ours == pytest.approx(61.2), "DKD's value was read at its best epoch"
    printed = text(list(by_row.values()))
    assert "1 of 3 published cells reproduced; 1 not reproduced, 1 preliminary." in printed and RULE in printed
    assert "69.06 ± 0.20 (n = 3)" in printed and "-10.77" in printed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"task": "folder:/data/birds"}, "another data set"), ({"metric": "top5"}, "another metric")],
)
def test_another_data_set_or_metric_makes_no_verdict(tmp_path: Path, changes: dict[str, str], reason: str) -> None:
    shown = paper()
    changed = shown.model_copy(update={"columns": tuple(c.model_copy(update=changes) for c in shown.columns)})
    for one, expected in ((shown, (True, "")), (changed, (False, reason))):
        (value,) = collect(one, Store(tmp_path)).rows[0].entries.values()
        assert value.published and (value.published.comparable, value.published.reason) == expected


def test_a_recipe_of_a_user_s_own_is_no_mistake(tmp_path: Path) -> None:
    """Values are filed under recipes that are no protocols here, and a user's may repeat one."""
    shown = paper(recipe="simkd-toolbox")
    (value,) = collect(shown, Store(tmp_path)).rows[0].entries.values()
    assert value.published and not value.published.comparable
    theirs = shown.rows[1].model_copy(update={"key": "skd", "method": "skd"})
    repeated = paper(recipe="streamlined").model_copy(update={"rows": (theirs,), "row_order": ("skd",), "cells": ()})
    (value,) = collect(repeated, Store(tmp_path)).rows[0].entries.values()
    assert value.published and value.published.reason.startswith("published under another streamlined")


def test_a_teacher_is_compared_under_the_recipe_of_teachers(tmp_path: Path) -> None:
    """letKD's students have a recipe of their own, and CRD's teachers, of which CRD's values are."""
    shown = paper(published="cifar100-letkd.csv", recipe="cifar100-letkd", sources=["letKD supplement"])
    (column,) = collect(shown, Store(tmp_path)).columns
    assert column.teacher_published and column.teacher_published.comparable, column.teacher_published
    assert column.teacher_published.epoch_rule == "file", "a network that is given has no epochs"


def test_other_teachers_make_no_verdict(store: Path) -> None:
    manifest.save(store, TABLE_FOLDER, edited(manifest.existing(store, TABLE_FOLDER), off=True, accuracy=70.0))
    by_row = {one.row: one for one in of_table(store, TABLE_FOLDER, pytest.fail)}
    assert by_row["dkd"].verdict == "not comparable" and by_row["dkd"].gap is None
    assert by_row["student"].verdict == "reproduced", "it has no teacher"


def test_files_frame_and_command_agree(store: Path) -> None:
    call = CliRunner().invoke(cli, ["verdicts", "--output", str(store)])
    assert call.exit_code == 0 and "1 table: 1 of 3 published cells reproduced" in call.output
    folder = manifest.path(store, TABLE_FOLDER).parent
    lines = list(csv.DictReader(io.StringIO((folder / "table1-verdicts.csv").read_text())))
    table = frame(store, TABLE_FOLDER)
    assert (
        [line["verdict"] for line in lines]
        == list(table.verdict)
        == [one.verdict for one in of_table(store, TABLE_FOLDER)]
    )
    assert [float(line["gap"]) for line in lines] == pytest.approx(list(table.gap)), "figures are numbers"
    assert list(frame(store).columns) == list(table.columns) and table.gap.dtype == float
    page = (folder / "table1-verdicts.md").read_text()
    assert "**1 of 3 published cells reproduced; 1 not reproduced, 1 preliminary.**" in page
    assert as_csv(()).count("\n") == 1 and judging.summary(()) == "0 of 0 published cells reproduced"
