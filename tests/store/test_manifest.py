"""plan.json: what a later run keeps of it, who may write it, and what is said of a damaged one."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.manifests import Lab, names, note, paper, places, rendered

from benchmarks.report.collect import render
from benchmarks.store import manifest
from benchmarks.store.manifest import merge
from kd_methods.errors import Damaged

REPO = Path(__file__).parents[2]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_the_first_plan_is_taken_as_it_is(lab: Lab) -> None:
    shown = lab.manifest()
    assert merge(None, shown) == shown and merge(shown, shown) == shown


def test_a_run_of_some_rows_keeps_the_others(lab: Lab) -> None:
    whole, part = lab.manifest(), lab.manifest(methods=("dkd",))
    merged = merge(whole, part)
    assert places(merged) == places(whole)
    assert names(merged, "rows") == ["student", "kd", "dkd"], "in the table's own order"
    assert {(c.row, c.column) for c in merged.costs} == {(c.row, c.column) for c in whole.costs}


def test_a_run_of_some_columns_keeps_the_others(lab: Lab) -> None:
    whole, part = lab.manifest(), lab.manifest(pairs=("wrn_16_1-resnet8",))
    merged = merge(whole, part)
    assert places(merged) == places(whole)
    assert names(merged, "columns") == ["resnet14-resnet8", "wrn_16_1-resnet8"]


def test_rows_and_columns_beyond_the_table_come_last(lab: Lab) -> None:
    merged = merge(lab.manifest(methods=("at",), pairs=("vgg8-resnet8",)), lab.manifest())
    assert names(merged, "rows") == ["student", "kd", "dkd", "at"]
    assert names(merged, "columns") == ["resnet14-resnet8", "wrn_16_1-resnet8", "vgg8-resnet8"]
    assert ("at", "vgg8-resnet8", 0) in places(merged) and ("at", "resnet14-resnet8", 0) not in places(merged)


@pytest.mark.parametrize("methods", [("student",), ("kd",)])
def test_a_run_of_the_student_alone_keeps_the_others(lab: Lab, methods: tuple[str, ...]) -> None:
    other = ("kd",) if methods == ("student",) else ("student",)
    merged = merge(lab.manifest(methods=other), lab.manifest(methods=methods))
    assert {row for row, _, _ in places(merged)} == {"student", "kd"}
    assert all(column.teacher for column in merged.columns)


def test_another_seed_adds(lab: Lab) -> None:
    merged = merge(lab.manifest(), lab.manifest(methods=("kd",), seeds=(2,)))
    assert {seed for row, _, seed in places(merged) if row == "kd"} == {0, 1, 2}
    assert {seed for row, _, seed in places(merged) if row == "dkd"} == {0, 1}


def test_a_changed_setting_replaces_what_it_would_mix_with(lab: Lab) -> None:
    merged = merge(lab.manifest(), lab.manifest(methods=("kd",), seeds=(2,), overrides=("kd.temperature=2",)))
    assert {seed for row, _, seed in places(merged) if row == "kd"} == {2}
    assert {seed for row, _, seed in places(merged) if row == "dkd"} == {0, 1}
    assert note(merged, "kd") == "temperature 2.0"


def test_a_settings_note_covers_the_columns_that_were_kept(lab: Lab) -> None:
    """kd ran with the default in the first column; only the second one was changed."""
    changed = lab.manifest(methods=("kd",), pairs=("wrn_16_1-resnet8",), overrides=("kd.temperature=2",))
    assert note(merge(lab.manifest(), changed), "kd") == "temperature 2.0 for wrn_16_1-resnet8"


def test_learning_rates_of_all_columns_are_named(tmp_path: Path) -> None:
    shown = paper()
    other = {"key": "vgg13-MobileNetV2", "teacher_network": "vgg13", "student": "MobileNetV2", "lr": 0.01}
    shown = shown.model_copy(update={"columns": (*shown.columns, shown.columns[0].model_copy(update=other))})
    _, text, _ = rendered(tmp_path, shown)
    assert "lr 0.01 for MobileNetV2" in text and "lr 0.05 for" not in text


def test_a_changed_teacher_drops_its_column_alone(lab: Lab) -> None:
    old = lab.manifest()
    lab.teacher("resnet14", 0)
    new = lab.manifest(methods=("kd",))
    merged = merge(old, new)
    assert ("dkd", "resnet14-resnet8", 0) not in places(merged)
    assert ("student", "resnet14-resnet8", 0) in places(merged), "a plain student has no teacher"
    assert ("dkd", "wrn_16_1-resnet8", 0) in places(merged)
    lab.teacher("resnet14", 1)
    again = merge(merged, lab.manifest(methods=("dkd",)))
    assert ("kd", "resnet14-resnet8", 0) not in places(again) and ("kd", "wrn_16_1-resnet8", 0) in places(again)


def test_changed_data_or_protocol_drops_everything_old(lab: Lab) -> None:
    old, new = lab.manifest(), lab.manifest(methods=("kd",))
    other = new.model_copy(
        update={
            "columns": tuple(column.model_copy(update={"data": "another copy"}) for column in new.columns),
            "cells": tuple(cell.model_copy(update={"key": cell.key[::-1]}) for cell in new.cells),
        }
    )
    assert places(merge(old, other)) == places(other) and names(merge(old, other), "rows") == ["kd"]
    assert merge(old, new.model_copy(update={"protocol": {**new.protocol, "version": 99}})).cells == new.cells


def test_merging_leaves_its_arguments_alone(lab: Lab) -> None:
    old, new = lab.manifest(), lab.manifest(methods=("dkd",), seeds=(5,))
    before = copy.deepcopy((old, new))
    merge(old, new)
    assert (old, new) == before


SAVE = """
import sys, time
from collections.abc import Mapping
from pathlib import Path
from benchmarks.store import manifest

merge = manifest.merge
manifest.merge = lambda *parts: (time.sleep(0.3), merge(*parts))[1]  # so that they would meet
new = manifest.Manifest.model_validate_json(sys.stdin.readline())
print("ready", flush=True)
sys.stdin.readline()
manifest.save(Path(sys.argv[1]), "table1-paper", new)
"""


def test_processes_that_save_at_the_same_time_keep_all_rows(tmp_path: Path) -> None:
    whole = paper()
    rows = [row.key for row in whole.rows]
    parts = [
        whole.model_copy(
            update={
                "rows": tuple(planned for planned in whole.rows if planned.key == row),
                "cells": tuple(cell for cell in whole.cells if cell.row == row),
            }
        )
        for row in rows
    ]
    manifest.save(tmp_path, "table1-paper", whole.model_copy(update={"rows": (), "cells": ()}))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE, str(tmp_path)], cwd=REPO, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in parts
    ]  # fmt: skip
    for process, part in zip(started, parts, strict=True):
        assert process.stdin and process.stdout
        process.stdin.write(part.model_dump_json() + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    shown = manifest.load(tmp_path, "table1-paper")
    assert shown
    assert names(shown, "rows") == rows and len(shown.cells) == len(whole.cells)


@pytest.mark.parametrize("content", ['{"name": ', "[]", "{}", '{"metric": 1}', '{"metric": 1, "columns": 3}', "null"])
def test_a_damaged_manifest_is_named_and_kept(tmp_path: Path, content: str) -> None:
    manifest.save(tmp_path, "table1-paper", paper())
    path = manifest.path(tmp_path, "table1-paper")
    path.write_text(content)
    for call in (render, lambda *where: manifest.save(*where, paper())):
        with pytest.raises(Damaged) as caught:
            call(tmp_path, "table1-paper")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_text() == content


def test_a_changed_manifest_is_named(tmp_path: Path) -> None:
    manifest.save(tmp_path, "table1-paper", paper())
    path = manifest.path(tmp_path, "table1-paper")
    path.write_text(path.read_text().replace('"lr": 0.05', '"lr": 0.06'))
    with pytest.raises(Damaged, match=r"plan\.json is damaged .it is not what was written"):
        render(tmp_path, "table1-paper")
