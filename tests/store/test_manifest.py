"""plan.json and the store determine a table: what a later run keeps, what rendering reads, what gets a verdict."""

from __future__ import annotations

import copy
import csv
import io
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common.files import digest, write_json
from benchmarks.common.workspace import Workspace
from benchmarks.driver.describe import describe
from benchmarks.driver.plan import Request, make
from benchmarks.networks import build_network
from benchmarks.report.collect import collect, render
from benchmarks.store import manifest
from benchmarks.store.manifest import Manifest, _upgraded, merge
from benchmarks.store.runs import Store
from benchmarks.teachers.zoo import Teacher, Zoo
from kd_methods.errors import Damaged, UserError

REPO = Path(__file__).parents[2]
PAIR = "resnet56-resnet20"
OTHER = "resnet110-resnet20"
FACTS = {
    "date": "2026-01-02", "commit": "abcdef123456", "machine": "a machine", "versions": {"torch": "2.9"},
}  # fmt: skip
TABLE = """\
name: mine
title: "My table"
pairs: [resnet14-resnet8, wrn_16_1-resnet8]
methods: [student, kd, dkd]
presets:
  paper: {protocol: digits-demo, seeds: [0, 1]}
"""
Lines = dict[tuple[str, str], dict[str, str]]


class Lab:
    """A table on digits whose manifests are made as the driver makes them; nothing is trained."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = folder / "mine.yaml"
        self.table.write_text(TABLE)
        self.zoo = Zoo(folder / "checkpoints")
        self.workspace = Workspace(torch.device("cpu"), folder, self.zoo.folder)

    def manifest(self, **request: Any) -> Manifest:
        plan = make(Request(table=str(self.table), **request), self.workspace)
        return describe(plan, self.zoo, {}, "a machine")

    def teacher(self, network: str, seed: int) -> None:
        torch.manual_seed(seed)
        file = self.folder / f"{seed}.pth"
        torch.save(build_network(network, 10).module.state_dict(), file)
        mean_std = {"mean": (0.3, 0.3, 0.3), "std": (0.35, 0.35, 0.35)}
        self.zoo.add(Teacher(name=network, network=network, task="digits", **mean_std), file)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def places(shown: Manifest) -> set[tuple[str, str, int]]:
    found = [(cell.row, cell.column, cell.seed) for cell in shown.cells]
    assert len(found) == len(set(found)), "a place is shown twice"
    return set(found)


def note(shown: Manifest, row: str) -> str:
    """What the table says of a row's settings."""
    table = collect(shown, Store(Path("nowhere")))
    return next(found.settings_note for found in table.rows if found.key == row)


def names(shown: Manifest, what: str) -> list[str]:
    return [item.key for item in getattr(shown, what)]


def paper(**changes: Any) -> Manifest:
    """A manifest of table 1 under the paper's protocol with the teachers that the published numbers stand on."""
    facts = {"cell": "", "entry": "resnet56-crd", "origin": "crd", "accuracy": 72.34, "off": False}
    teacher = {"identity": {"weights": "w"}, **facts}
    columns = [{"key": PAIR, "teacher_network": "resnet56", "student": "resnet20", "lr": 0.05, "teacher": teacher}]
    rows = [
        {"key": key, "method": key, "title": title, "family": "logit", "our_choice": [], "defaults": {}}
        for key, title in (("student", "Student"), ("kd", "KD"), ("dkd", "DKD"))
    ]
    cells = [
        {"row": row["key"], "column": PAIR, "seed": seed, "key": f"{row['key']}-{seed}-{'0' * 20}"[:20],
         "settings": {}, "data": "d", "published_settings": True, "taught": row["key"] != "student"}
        for row in rows for seed in (0, 1)
    ]  # fmt: skip
    shown: dict[str, Any] = {
        "name": "table1", "title": "Title", "metric": "top1", "metric_title": "Top-1 accuracy (%)",
        "published": "cifar100.csv",
        "sources": ["RepDistiller", "mdistiller"], "recipe": "cifar100-crd240", "protocol": {"epochs": 240},
        "protocol_lines": ["cifar100-crd240 v1 on cifar100: 240 epochs"], "deviations": [], "notes": [],
        "data": "d", "lr": 0.05,
        "row_order": ["student", "kd", "dkd"], "column_order": [PAIR, OTHER], "columns": columns, "rows": rows,
        "cells": cells, "costs": [],
    }  # fmt: skip
    return Manifest.model_validate(_upgraded({**shown, **changes}))


def edited(shown: Manifest, **columns_teacher: Any) -> Manifest:
    """The same with other facts of its columns' teachers."""
    columns = [
        column.model_copy(update={"teacher": column.teacher.model_copy(update=columns_teacher)})
        for column in shown.columns
    ]
    return shown.model_copy(update={"columns": tuple(columns)})


def finish(output: Path, shown: Manifest, values: dict[str, tuple[float, float]]) -> None:
    """Write run directories as training leaves them: (last, best) of a row, the second seed 0.2 higher."""
    store = Store(output)
    for cell in shown.cells:
        if cell.row in values:
            last, best = (value + 0.2 * cell.seed for value in values[cell.row])
            run = store.run(cell.key)
            write_json(run / "environment.json", [FACTS])
            run.set_status("done", epoch=240, epochs=240, last={"top1": last}, best={"top1": best})


def rendered(output: Path, shown: Manifest) -> tuple[Lines, str, str]:
    """(CSV lines by row and pair, Markdown, LaTeX) of a manifest over the runs in ``output``."""
    path = manifest.path(output, "table1-paper")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(shown.model_dump_json())
    files, text = render(output, "table1-paper")
    texts = {file.suffix: file.read_text() for file in files}
    assert texts[".md"] == text
    lines = {(line["row"], line["pair"]): line for line in csv.DictReader(io.StringIO(texts[".csv"]))}
    return lines, text, texts[".tex"]


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


def test_rendering_is_a_pure_function_of_the_store(tmp_path: Path) -> None:
    """Again, in another process from another folder, without data, without torch: the same bytes."""
    shown = paper()
    finish(tmp_path, shown, {"student": (69.0, 69.3), "kd": (70.5, 71.0)})
    rendered(tmp_path, shown)
    folder = manifest.path(tmp_path, "table1-paper").parent
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(first) == {"plan.json", "table1.tex", "table1.md", "table1.csv"}
    for file in folder.glob("table1.*"):
        file.unlink()
    script = (
        "import pathlib, sys; from benchmarks.report.collect import render;"
        "render(pathlib.Path(sys.argv[1]), 'table1-paper'); assert 'torch' not in sys.modules"
    )
    environment = {"PYTHONPATH": str(REPO), "KDBENCH_DATA": str(tmp_path / "none"), "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        check=True,
        cwd=tmp_path / "elsewhere",
        env=environment,
        timeout=60,
    )
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first


def test_arithmetic_stands_in_the_provenance_of_runs_that_have_it(tmp_path: Path) -> None:
    shown = paper()
    finish(tmp_path, shown, {"kd": (70.0, 71.0)})
    _, markdown, _ = rendered(tmp_path, shown)
    assert "on a machine with torch 2.9" in markdown, "as runs were recorded before"
    cell = next(cell for cell in shown.cells if cell.row == "kd")
    facts = {**FACTS, "arithmetic": {"summary": "AVX2, fp32 in full"}}
    run = Store(tmp_path).run(cell.key)
    write_json(run / "environment.json", [facts])
    run.set_status("done", last={"top1": 70.0}, best={"top1": 71.0})
    _, markdown, _ = rendered(tmp_path, shown)
    assert "on a machine, a machine (AVX2, fp32 in full) with torch 2.9" in markdown


def test_the_order_in_which_runs_were_planned_does_not_show(tmp_path: Path) -> None:
    shown = paper()
    finish(tmp_path, shown, {"student": (69.0, 69.3), "kd": (70.5, 71.0), "dkd": (71.0, 71.4)})
    first = rendered(tmp_path, shown)
    assert rendered(tmp_path, shown.model_copy(update={"cells": shown.cells[::-1]})) == first


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


def test_nothing_that_is_missing_is_hidden(tmp_path: Path) -> None:
    shown = paper()
    _, text, _ = rendered(tmp_path, shown)
    assert "No run of this table has finished yet" in text and "3 of 3 cells have no finished run" in text

    finish(tmp_path, shown, {"kd": (70.5, 71.0)})
    store = Store(tmp_path)
    by_place = {(cell.row, cell.seed): cell.key for cell in shown.cells}
    store.run(by_place["dkd", 0]).set_status("diverged", message="loss term 'dkd' is nan")
    store.run(by_place["student", 0]).set_status("running", epoch=3, epochs=240)
    lines, text, tex = rendered(tmp_path, shown)
    assert (lines["dkd", PAIR]["diverged"], lines["dkd", PAIR]["missing"], lines["dkd", PAIR]["value"]) == (
        "1",
        "1",
        "",
    )
    assert (lines["student", PAIR]["missing"], lines["student", PAIR]["value"]) == ("2", "")
    assert lines["kd", PAIR]["n"] == "2"
    for written in (text, tex):
        assert "1 of 3 cells have no finished run" in written and "div. 1/2" in written


def test_values_are_those_of_the_runs(tmp_path: Path) -> None:
    shown = paper()
    finish(tmp_path, shown, {"kd": (70.5, 71.0)})
    lines, text, _ = rendered(tmp_path, shown)
    line = lines["kd", PAIR]
    assert (line["mean_last"], line["mean_best"], line["n"]) == ("70.6000", "71.1000", "2")
    assert line["std_last"] == "0.1414" and line["values_last"] == "70.5000 70.7000"
    assert "2026-01-02" in text and "abcdef123456" in text and "a machine" in text


def test_under_the_papers_protocol_and_teacher_there_is_a_verdict(tmp_path: Path) -> None:
    shown = paper()
    finish(tmp_path, shown, {"student": (69.0, 69.3), "kd": (70.5, 71.0), "dkd": (71.0, 71.6)})
    lines, text, _ = rendered(tmp_path, shown)
    assert {line["comparable"] for line in lines.values()} == {"yes"} and "†" not in text
    assert (lines["kd", PAIR]["published"], lines["kd", PAIR]["gap"]) == ("70.6600", "-0.0600")
    assert (lines["student", PAIR]["published"], lines["student", PAIR]["gap"]) == ("69.0600", "0.0400")
    assert (lines["teacher", PAIR]["published"], lines["teacher", PAIR]["gap"]) == ("72.3400", "0.0000")
    dkd = lines["dkd", PAIR]
    assert (dkd["published"], dkd["epoch_rule"]) == ("71.9700", "best") and "mdistiller" in dkd["source"]
    assert dkd["gap"] == "-0.2700", "our best epoch minus their best epoch"
    assert "NOT the paper's protocol" not in text


def test_what_deviates_gets_a_dagger_and_no_verdict(tmp_path: Path) -> None:
    shown = paper(deviations=["10 epochs instead of 240"])
    finish(tmp_path, shown, {"student": (69.0, 69.3), "kd": (70.5, 71.0)})
    lines, text, tex = rendered(tmp_path, shown)
    assert {line["comparable"] for line in lines.values()} == {"no"}
    assert {line["gap"] for line in lines.values()} == {""}
    assert lines["kd", PAIR]["published"] == "70.6600" and "70.66†" in text.replace("<sup>", "").replace("</sup>", "")
    for written in (text, tex):
        assert "NOT the paper's protocol: 10 epochs instead of 240" in written
    assert "our protocol deviates from the published one" in text


@pytest.mark.parametrize("origin", ["chenyaofo", "here", ""])
def test_what_is_published_for_another_teacher_gets_no_verdict(tmp_path: Path, origin: str) -> None:
    shown = edited(paper(), origin=origin)
    finish(tmp_path, shown, {"student": (69.0, 69.3), "kd": (70.5, 71.0)})
    lines, text, _ = rendered(tmp_path, shown)
    for row in ("kd", "dkd", "teacher"):
        assert (lines[row, PAIR]["comparable"], lines[row, PAIR]["gap"]) == ("no", ""), row
        assert lines[row, PAIR]["reason"] == "another teacher"
    assert lines["student", PAIR]["gap"] == "0.0400", "a plain student has no teacher"
    assert "†" in text


def test_other_settings_than_the_published_ones_get_no_verdict(tmp_path: Path) -> None:
    usual = paper()
    cells = tuple(
        cell.model_copy(update={"published_settings": (cell.row, cell.seed) != ("kd", 1)}) for cell in usual.cells
    )
    shown = usual.model_copy(update={"cells": cells})
    finish(tmp_path, shown, {"kd": (70.5, 71.0), "dkd": (71.0, 71.6)})
    lines, _, _ = rendered(tmp_path, shown)
    assert (lines["kd", PAIR]["gap"], lines["kd", PAIR]["reason"]) == ("", "other settings than the published ones")
    assert lines["dkd", PAIR]["comparable"] == "yes"


def test_a_teacher_off_its_entry_gets_no_verdict(tmp_path: Path) -> None:
    shown = edited(paper(), off=True, accuracy=70.0)
    finish(tmp_path, shown, {"student": (69.0, 69.3), "kd": (70.5, 71.0)})
    lines, text, _ = rendered(tmp_path, shown)
    assert lines["kd", PAIR]["gap"] == lines["teacher", PAIR]["gap"] == "" and "off its expected accuracy" in text
    assert lines["student", PAIR]["gap"] == "0.0400"


def test_methods_that_are_not_run_are_quoted(tmp_path: Path) -> None:
    """Under a heading of their own, with their source; where no column has a value, not at all."""
    shown = paper(published="cifar100-letkd.csv", sources=["letKD"], quoted={"tdd": "TDD", "nobody": "Nobody's"})
    finish(tmp_path, shown, {"kd": (70.5, 71.0)})
    lines, text, tex = rendered(tmp_path, shown)
    assert lines["tdd", PAIR]["published"] == "71.5300" and lines["tdd", PAIR]["value"] == ""
    assert "published, not run here" in text and "TDD" in text and "71.53" in tex and "Nobody" not in text + tex
    sources = next(line for line in text.splitlines() if "Sources of published values" in line)
    assert "TDD" in sources and ("nobody", PAIR) not in lines


def test_another_recipe_gets_no_verdict(tmp_path: Path) -> None:
    shown = paper(recipe="cifar100-mlld")
    finish(tmp_path, shown, {"kd": (70.5, 71.0)})
    lines, _, _ = rendered(tmp_path, shown)
    assert lines["kd", PAIR]["gap"] == "" and "published under" in lines["kd", PAIR]["reason"]


def test_a_trained_teacher_shows_what_its_cell_measured(tmp_path: Path) -> None:
    shown = edited(paper(), identity={}, cell="t" * 20, entry="", origin="here")
    lines, text, _ = rendered(tmp_path, shown)
    assert lines["teacher", PAIR]["value"] == ""
    status = {"last": {"top1": 71.25}, "best": {"top1": 71.5}, "remarks": ["computed with threads 1 instead of 2"]}
    Store(tmp_path).run("t" * 20).set_status("done", **status)
    lines, text, _ = rendered(tmp_path, shown)
    assert lines["teacher", PAIR]["value"] == "71.2500"
    assert "trained here under the same protocol, seed 0; computed with threads 1 instead of 2" in text


def test_a_table_that_was_never_run_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no table 'table1-paper'.*there: none.*run it first"):
        render(tmp_path, "table1-paper")
    manifest.save(tmp_path, "table1-demo", paper())
    with pytest.raises(UserError, match="there: table1-demo"):
        render(tmp_path, "table1-paper")
    assert not manifest.path(tmp_path, "table1-paper").parent.exists()


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


def by_row(files: list[Path]) -> Mapping[str, dict[str, str]]:
    """The lines of the CSV file by row."""
    text = next(file for file in files if file.suffix == ".csv").read_text()
    return {line["row"]: line for line in csv.DictReader(io.StringIO(text))}


@pytest.mark.parametrize("name", ["status.json", "environment.json"])
@pytest.mark.parametrize("how", ["half", "empty", "list", "value", "another cell's"])
def test_a_damaged_run_is_missing_in_the_table_and_named(tmp_path: Path, name: str, how: str) -> None:
    shown = paper()
    finish(tmp_path, shown, {"kd": (70.5, 71.0), "dkd": (72.0, 72.5)})
    manifest.save(tmp_path, "table1-paper", shown)
    run, other = (Store(tmp_path).run(cell.key) for cell in shown.cells if cell.row == "kd")
    content = (run / name).read_text()
    (run / name).write_text({
        "half": content[: len(content) // 2],
        "empty": "",
        "list": "[1]",
        "value": content.replace("70.5", "71.5").replace("abcdef", "abcdeg"),
        "another cell's": (other / name).read_text().replace("abcdef", "abcdeg"),
    }[how])  # fmt: skip
    before = {file: file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file()}
    said: list[str] = []
    files, _ = render(tmp_path, "table1-paper", said.append)
    (line,) = said
    assert str(run.path) in line and "missing in the table" in line and "\n" not in line
    lines = by_row(files)
    assert (lines["kd"]["n"], lines["kd"]["missing"], lines["dkd"]["n"]) == ("1", "1", "2")
    assert before == {file: file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file()}


SWAPPED = {("kd", 0), ("dkd", 1)}


@pytest.mark.parametrize("old", [False, True])
def test_swapped_folders_of_runs_are_noticed(tmp_path: Path, old: bool) -> None:
    """Also those of a time when only cell.json had the cell's key."""
    store, identities = Store(tmp_path), [{"place": [cell.row, cell.seed]} for cell in paper().cells]
    cells = [cell.model_copy(update={"key": digest(own)}) for cell, own in zip(paper().cells, identities, strict=True)]
    shown = paper().model_copy(update={"cells": tuple(cells)})
    finish(tmp_path, shown, {"student": (69.0, 69.5), "kd": (70.5, 71.0), "dkd": (72.0, 72.5)})
    for cell, own in zip(cells, identities, strict=True):
        run = store.run(cell.key)
        write_json(run / "cell.json", {"key": cell.key, "label": "a label", "cell": own})
        if old:
            status = {key: value for key, value in run.status.items() if key not in ("key", "files")}
            write_json(run / "status.json", status)
    manifest.save(tmp_path, "table1-paper", shown)
    said: list[str] = []
    render(tmp_path, "table1-paper", said.append)
    assert not said
    one, two = (store.run(cell.key).path for cell in cells if (cell.row, cell.seed) in SWAPPED)
    one.rename(tmp_path / "swap")
    two.rename(one)
    (tmp_path / "swap").rename(two)
    files, _ = render(tmp_path, "table1-paper", said.append)
    assert len(said) == 2 and all("results of another cell" in line for line in said)
    assert str(one) in said[0] and str(two) in said[1]
    assert {row: by_row(files)[row]["n"] for row in ("student", "kd", "dkd")} == {"student": "2", "kd": "1", "dkd": "1"}


def test_a_row_with_an_optimiser_of_its_own(lab: Lab) -> None:
    """It is named under the table, and no published value is held against it unless the row says which."""
    lab.table.write_text(TABLE.replace("dkd]", "{id: kd-dot, method: kd, optimizer: {name: dot, delta: 0.05}}]"))
    shown = lab.manifest()
    assert note(shown, "kd-dot") == "DOT, delta 0.05, momentum 0.9, weight decay 0.0005"
    usual = {cell.row: cell.published_settings for cell in shown.cells}
    assert usual == {"student": True, "kd": True, "kd-dot": False}
    keys = {(cell.row, cell.column, cell.seed): cell.key for cell in shown.cells}
    assert keys["kd", "resnet14-resnet8", 0] != keys["kd-dot", "resnet14-resnet8", 0]
    lab.table.write_text(lab.table.read_text().replace("delta: 0.05}", "delta: 0.05}, published: kd-dot"))
    assert all(cell.published_settings for cell in lab.manifest().cells)
    changed = lab.manifest(overrides=("kd-dot.temperature=2",)).cells
    assert not any(cell.published_settings for cell in changed if cell.row == "kd-dot")


def test_settings_of_a_combination_are_named_by_part(lab: Lab) -> None:
    shown = lab.manifest(methods=("sp+kd",), overrides=("sp+kd.kd.temperature=2", "sp+kd.sp.beta=10"))
    assert note(shown, "sp+kd") == "sp.beta 10.0, kd.temperature 2.0"


def test_a_method_that_refuses_a_pair_shows_as_not_for_it(lab: Lab) -> None:
    shown = manifest.save(lab.folder, "mine", lab.manifest(methods=("kd",)))
    for cell in shown.cells:
        Store(lab.folder).run(cell.key).set_status("refused", message="method 'kd' is not for 'tests'")
    _, text = render(lab.folder, "mine")
    assert text.count("n/a") == 3 and "is not for 'tests'" in text and "fail" not in text


def test_settings_that_nobody_published_are_marked(lab: Lab) -> None:
    """Those of the demonstrations' recipes are data with a source, and the source is us."""
    rows = {row.key: row.our_choice for row in lab.manifest(methods=("kd", "dkd", "sp+dkd", "at")).rows}
    assert rows == {"kd": (), "dkd": ("beta 2.0",), "sp+dkd": ("dkd.beta 2.0",), "at": ("beta 250.0",)}
    rows = {row.key: row.our_choice for row in lab.manifest(methods=("dkd",), uniform=True).rows}
    assert rows == {"dkd": ()}
