"""Which part of a table is printed, in which order, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.manifests import Lab, finish, names, paper, places

from benchmarks.report.collect import render
from benchmarks.store import manifest
from benchmarks.store.selection import ALL, Selection, left_out, selected
from kd_methods.errors import UserError


def test_rows_columns_and_seeds_are_chosen_and_ordered(tmp_path: Path) -> None:
    shown = Lab(tmp_path).manifest()
    chosen = selected(shown, Selection(("dkd", "student"), ("wrn_16_1-resnet8", "resnet14-resnet8"), (1,)))
    assert names(chosen, "rows") == ["dkd", "student"]
    assert names(chosen, "columns") == ["wrn_16_1-resnet8", "resnet14-resnet8"]
    assert places(chosen) == {(r, c, 1) for r in names(chosen, "rows") for c in names(chosen, "columns")}
    assert {cost.row for cost in chosen.costs} == {"dkd", "student"}
    assert left_out(shown, chosen) == (
        "left out, as not asked for: 1 row (KD), 1 seed (0); `render` shows all that the store has"
    )
    assert selected(shown, ALL) == shown and left_out(shown, shown) == ""


def test_a_pair_without_a_task_is_its_columns_on_all_tasks() -> None:
    shown = paper()
    tasks = [shown.columns[0].model_copy(update={"key": f"a-b:{task}"}) for task in ("x", "y")]
    shown = shown.model_copy(update={"columns": (*shown.columns, *tasks)})
    assert names(selected(shown, Selection(columns=("a-b",))), "columns") == ["a-b:x", "a-b:y"]
    assert names(selected(shown, Selection(columns=("a-b:y",))), "columns") == ["a-b:y"]
    assert selected(shown, ALL) == shown


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Selection(("dkdd",)), "unknown row of this table in the store 'dkdd'; did you mean dkd"),
        (Selection(columns=("resnet56-resnet21",)), "unknown pair .* did you mean resnet56-resnet20"),
        (Selection(seeds=(0, 7)), r"has seed 7 \(there: 0, 1\)"),
    ],
)
def test_what_the_store_does_not_have_cannot_be_shown(wanted: Selection, words: str) -> None:
    with pytest.raises(UserError, match=words):
        selected(paper(), wanted)


def test_a_table_of_a_part_and_of_all_again(tmp_path: Path) -> None:
    """One line says what is left out; without a choice everything is back, to the same bytes."""
    shown = paper()
    finish(tmp_path, shown, {"student": (69.0, 69.3), "kd": (70.5, 71.0), "dkd": (72.0, 72.5)})
    manifest.save(tmp_path, "table1-paper", shown)
    said: list[str] = []
    files, whole, _ = render(tmp_path, "table1-paper", said.append)
    before = [file.read_bytes() for file in files]
    assert not said
    _, chosen, _ = render(tmp_path, "table1-paper", said.append, Selection(("dkd", "kd"), (), (0,)))
    assert (
        chosen.index("| DKD |") < chosen.index("| KD |") and "Student" not in chosen.split("|\n\n")[0].split("---:")[1]
    )
    assert "72.00" in chosen and "72.10" in whole
    assert said == ["left out, as not asked for: 1 row (Student), 1 seed (1); `render` shows all that the store has"]
    assert [file.read_bytes() for file in render(tmp_path, "table1-paper")[0]] == before
