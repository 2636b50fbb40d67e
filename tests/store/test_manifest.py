"""plan.json: what a later run keeps of it, who may write it, and what is said of a damaged one."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers.manifests import TABLE, Lab, edited, names, note, paper, places, rendered

from benchmarks.common.files import write_json
from benchmarks.report.collect import collect, render
from benchmarks.report.collect_cost import collect_cost
from benchmarks.report.model import CostEntry
from benchmarks.store import manifest
from benchmarks.store.manifest import merging
from benchmarks.store.manifest.shapes import Manifest
from benchmarks.store.runs import Store
from kd_methods.errors import Damaged

REPO = Path(__file__).parents[2]


def merge(old: Manifest | None, new: Manifest) -> Manifest:
    return merging.merge(old, new).manifest


def said(old: Manifest, new: Manifest) -> str:
    return "\n".join(merging.merge(old, new).said)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_the_first_plan_is_taken_as_it_is(lab: Lab) -> None:
    shown = lab.manifest()
    assert merging.merge(None, shown) == merging.merge(shown, shown) == (shown, ())


def test_a_run_of_some_rows_keeps_the_others(lab: Lab) -> None:
    whole, chosen = lab.manifest(), lab.manifest(methods=("dkd",))
    merged = merge(whole, chosen)
    assert places(merged) == places(whole)
    assert names(merged, "rows") == ["student", "kd", "dkd"], "in the table's own order"
    assert {(c.row, c.column) for c in merged.costs} == {(c.row, c.column) for c in whole.costs}


def test_choices_that_were_lines_are_read_with_their_values(lab: Lab) -> None:
    lab.table.write_text(TABLE.replace("dkd]", "{id: mine, method: anc, settings: {widths: [8, 16]}}]"))
    shown = lab.manifest(methods=("mine", "kd")).model_dump(mode="json")
    lines = ["widths [8, 16]", "gone 0.5", "lr 1 (wrn_16_1-resnet8)", "word a (b)"]
    earlier = {**shown, "rows": [{**row, "our_choice": lines if row["key"] == "mine" else []} for row in shown["rows"]]}
    write_json(manifest.path(lab.folder, "mine"), earlier)
    (choices,) = (row.our_choice for row in manifest.existing(lab.folder, "mine").rows if row.key == "mine")
    assert [(choice.key, choice.value, choice.columns) for choice in choices] == [
        ("widths", [8, 16], ()),
        ("gone", "0.5", ()),  # the cells do not have it any more
        ("lr", "1", ("wrn_16_1-resnet8",)),
        ("word", "a (b)", ()),
    ]
    (row,) = (
        row for row in collect(manifest.existing(lab.folder, "mine"), Store(lab.folder)).rows if row.key == "mine"
    )
    assert list(row.our_choice) == lines and "widths" not in row.settings_note


def test_a_run_of_some_columns_keeps_the_others(lab: Lab) -> None:
    whole, chosen = lab.manifest(), lab.manifest(pairs=("wrn_16_1-resnet8",))
    merged = merge(whole, chosen)
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


def test_a_teacher_stays_measured_where_a_later_run_has_no_use_for_it(lab: Lab) -> None:
    measured, later = edited(lab.manifest(), accuracy=72.63), lab.manifest(methods=("student",))
    assert all(column.teacher.accuracy == 72.63 for column in merge(measured, later).columns)
    other = edited(later, identity={"weights": "others"})
    assert all(column.teacher.accuracy is None for column in merge(measured, other).columns)
    assert all(column.teacher.accuracy == 70.0 for column in merge(measured, edited(later, accuracy=70.0)).columns)


def test_another_seed_adds(lab: Lab) -> None:
    merged = merge(lab.manifest(), lab.manifest(methods=("kd",), seeds=(2,)))
    assert {seed for row, _, seed in places(merged) if row == "kd"} == {0, 1, 2}
    assert {seed for row, _, seed in places(merged) if row == "dkd"} == {0, 1}


def test_another_setting_is_a_row_of_its_own(lab: Lab) -> None:
    old, new = lab.manifest(), lab.manifest(methods=("kd",), seeds=(2,), overrides=("kd.temperature=2",))
    merged = merge(old, new)
    assert places(old) < places(merged), "beside, never instead of, the usual row"
    assert {seed for row, _, seed in places(merged) if row == "kd:temperature=2"} == {2}
    assert names(merged, "rows") == ["student", "kd", "kd:temperature=2", "dkd"] and not said(old, new)
    assert names(merge(merged, lab.manifest(methods=("dkd",))), "rows") == names(merged, "rows")


def test_a_row_id_with_two_settings_never_shares_a_cell(lab: Lab) -> None:
    """As when the table's YAML or a default has changed, or an earlier version let --set take the row's place."""
    lab.table.write_text(TABLE.replace("dkd]", "{id: kd-x, method: kd, title: X, settings: {temperature: 2}}]"))
    old = lab.manifest()
    old_cost = {(cost.row, cost.column): cost.key for cost in old.costs}["kd-x", "resnet14-resnet8"]
    lab.table.write_text(lab.table.read_text().replace("temperature: 2", "temperature: 3"))
    new = lab.manifest(methods=("kd-x",), pairs=("resnet14-resnet8",), seeds=(0,))
    for before in (old, _unrecorded(old)):
        merged = merge(before, new)
        settings: dict[str, set[float]] = {}
        for cell in merged.cells:
            if cell.column == "resnet14-resnet8" and cell.row != "student":
                settings.setdefault(cell.row, set()).add(cell.settings["temperature"])
        assert settings == {"kd": {4.0}, "kd-x": {3.0}, "kd-x:temperature=2": {2.0}}
        assert [row.title for row in merged.rows] == ["Student (no KD)", "KD", "X", "X (T = 2)"]
        assert said(before, new) == "X was run with other settings before: that is the row X (T = 2) now"
        costs = {(cost.row, cost.column): cost.key for cost in merged.costs}
        assert costs["kd-x:temperature=2", "resnet14-resnet8"] == old_cost
        assert not said(merged, new) and merge(merged, new) == merged
    rows = {(cell.row, cell.column) for cell in merge(old, new).cells if cell.row.startswith("kd-x")}
    assert ("kd-x:temperature=2", "wrn_16_1-resnet8") in rows and ("kd-x", "wrn_16_1-resnet8") not in rows


def _unrecorded(shown: Manifest) -> Manifest:
    """As an earlier version wrote it."""
    rows = tuple(row.model_copy(update={"settings": None, "code": ""}) for row in shown.rows)
    cells = tuple(cell.model_copy(update={"series": ""}) for cell in shown.cells)
    return shown.model_copy(update={"rows": rows, "cells": cells})


def test_what_would_mix_is_replaced_and_named(lab: Lab) -> None:
    """Seeds of one row that another version of the method computed."""
    old = lab.manifest()
    new = lab.manifest(methods=("kd",), seeds=(2,))
    cells = tuple(cell.model_copy(update={"series": "another"}) for cell in new.cells)
    rows = tuple(row.model_copy(update={"code": "99"}) for row in new.rows)
    for changed in (new.model_copy(update={"cells": cells}), new.model_copy(update={"rows": rows})):
        merged = merge(old, changed)
        assert {seed for row, _, seed in places(merged) if row == "kd"} == {2}
        assert {seed for row, _, seed in places(merged) if row == "dkd"} == {0, 1}
        assert "KD (4 cells)" in said(old, changed) and "what was computed stays in the store" in said(old, changed)


def test_settings_per_column_are_one_row(lab: Lab) -> None:
    """What is published differs between pairs; a run of another pair changes nothing."""
    old = lab.manifest(methods=("dkd",), pairs=("resnet14-resnet8",), seeds=(0,))
    cells = tuple(c.model_copy(update={"settings": {**c.settings, "beta": 1.0}}) for c in old.cells)
    old, new = old.model_copy(update={"cells": cells}), lab.manifest(methods=("dkd",), pairs=("wrn_16_1-resnet8",))
    assert names(merge(old, new), "rows") == ["dkd"] and not said(old, new)
    assert note(merge(old, new), "dkd") == "beta 1.0 for resnet14-resnet8; beta 2.0 for wrn_16_1-resnet8"


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
    assert "another teacher now: KD (2 cells)" in said(merged, lab.manifest(methods=("dkd",)))
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
    assert "other data now: Student (no KD) (4 cells), KD (4 cells), DKD (4 cells)" in said(old, other)
    newer = new.model_copy(update={"protocol": {**new.protocol, "version": 99}})
    assert merge(old, newer).cells == new.cells and "another protocol (version) now: the table (12 cells)" in said(
        old, newer
    )


def test_a_column_on_other_data_or_at_another_rate_is_another_one(lab: Lab) -> None:
    """Also where its task has another name now, as a folder in another place has."""
    old, new = lab.manifest(methods=("student", "kd")), lab.manifest(methods=("dkd",))
    for changes, reason in (({"data": "b", "task": "folder:/b"}, "other data"), ({"lr": 9.0}, "another learning rate")):
        columns = tuple(column.model_copy(update=changes) for column in new.columns)
        other = new.model_copy(update={"columns": columns})
        assert places(merge(old, other)) == places(other)
        assert f"{reason} now: Student (no KD) (4 cells), KD (4 cells)" in said(old, other)


def test_what_a_caption_says_of_cells_stays_with_them(lab: Lab) -> None:
    first, second = (lab.manifest(pairs=(pair,)) for pair in ("resnet14-resnet8", "wrn_16_1-resnet8"))
    short = first.model_copy(update={"deviations": ("other has 1000 rows of train, officially 3668",)})
    merged = merge(short, second)
    assert merged.deviations == (*short.deviations, *second.deviations)
    assert merge(short, first).deviations == first.deviations, "nothing of it is shown"
    task = first.columns[0].task
    mended = short.model_copy(update={"deviations": (f"{task} has 1000 rows of train, officially 1437",)})
    assert merge(mended, second).deviations == second.deviations, "which says what is so now"


def test_a_plan_on_another_machine_hides_no_measured_cost(lab: Lab) -> None:
    here = lab.manifest()
    there = here.model_copy(update={"costs": tuple(c.model_copy(update={"key": c.key[::-1]}) for c in here.costs)})
    merged, store = merge(here, there), Store(lab.folder / "costs")
    cost = asdict(CostEntry(100.0, 2**30, "CUDA allocated", 0, 0, 8, "H200", 8))
    environment = {"date": "2026-01-02", "commit": "abc", "machine": "here", "versions": {"torch": "2.9"}}
    for planned in here.costs:
        write_json(store.cost(planned.key), {"label": "kd", "cost": cost, "environment": environment})
    newer = there.model_copy(update={"rows": tuple(row.model_copy(update={"code": "2"}) for row in there.rows)})
    newer = newer.model_copy(
        update={"cells": tuple(cell.model_copy(update={"key": cell.key[::-1]}) for cell in there.cells)}
    )
    assert merge(here, newer).costs == newer.costs, "what other code cost is no cost of the new one"
    for machine in ("here", "there"):
        table = collect_cost(merged, store, collect(merged, store))
        assert table and {entry.machine for row in table.rows for entry in row.entries.values()} == {machine}
        for planned in there.costs:
            facts = {**environment, "machine": "there"}
            write_json(store.cost(planned.key), {"label": "kd", "cost": cost, "environment": facts})


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
from benchmarks.store.manifest.shapes import Manifest

merge = manifest.merge
manifest.merge = lambda *manifests: (time.sleep(0.3), merge(*manifests))[1]  # so that they would meet
new = Manifest.model_validate_json(sys.stdin.readline())
print("ready", flush=True)
sys.stdin.readline()
manifest.save(Path(sys.argv[1]), "table1-paper", new)
"""


def test_processes_that_save_at_the_same_time_keep_all_rows(tmp_path: Path) -> None:
    whole = paper()
    rows = [row.key for row in whole.rows]
    manifests = [
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
        for _ in manifests
    ]  # fmt: skip
    for process, chosen in zip(started, manifests, strict=True):
        assert process.stdin and process.stdout
        process.stdin.write(chosen.model_dump_json() + "\n")
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
