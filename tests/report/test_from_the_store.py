"""plan.json and the store determine a table: what rendering reads, what is missing in it, what gets a verdict."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import stores
from helpers.manifests import FACTS, PAIR, by_row, edited, finish, paper, rendered

from benchmarks.common.files import digest, write_json
from benchmarks.report import Page
from benchmarks.report.collect import render
from benchmarks.store import manifest
from benchmarks.store.runs import Store
from kd_methods.errors import UserError

REPO = Path(__file__).parents[2]


def test_rendering_is_a_pure_function_of_the_store(tmp_path: Path) -> None:
    """Again, in another process from another folder, without data, without torch: the same bytes."""
    shown = paper()
    finish(tmp_path, shown, {"student": (69.0, 69.3), "kd": (70.5, 71.0)})
    rendered(tmp_path, shown)
    folder = manifest.path(tmp_path, "table1-paper").parent
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    ends = (".tex", "-appendix.tex", ".bib", ".md", ".csv", "-runs.csv")
    assert set(first) == {"plan.json", *(f"table1{end}" for end in ends)}
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


def test_files_do_not_depend_on_the_order_in_which_rows_were_run(tmp_path: Path) -> None:
    """Rows of the table and rows of one's own, in three orders, each with its seeds in another order."""
    methods, files = ["kd", "dkd", "zeta", "alpha+kd"], []
    for number, order in enumerate((methods, methods[::-1], ["zeta", "kd", "alpha+kd", "dkd"])):
        output = tmp_path / str(number)
        stores.finish(output, stores.TEACHER, 70.0)
        for i, method in enumerate(order):
            cells = [stores.cell(method, seed) for seed in ((0, 1) if i % 2 else (1, 0))]
            for cell in cells:
                stores.finish(output, cell, 70.0 + methods.index(method) + cell.seed, f"machine {method}")
            manifest.save(output, stores.TABLE_FOLDER, stores.shown(*cells))
        render(output, stores.TABLE_FOLDER, page=Page(figures=True))
        folder = output / "tables" / stores.TABLE_FOLDER
        files.append({file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()})
    assert len(files[0]) > 6 and files[0] == files[1] == files[2]


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
    assert line["std_last"] == "0.1414" and (line["last.0"], line["last.1"], line["best.1"]) == (
        "70.5000",
        "70.7000",
        "71.2000",
    )
    assert "2026-01-02" in text and "abcdef123456" in text and "a machine" in text


def test_under_the_papers_protocol_and_teacher_there_is_a_verdict(tmp_path: Path) -> None:
    shown = paper()
    finish(tmp_path, shown, {"student": (69.0, 69.3), "kd": (70.5, 71.0), "dkd": (71.0, 71.6)})
    lines, text, _ = rendered(tmp_path, shown)
    assert {line["comparable"] for line in lines.values()} == {"true"} and "†" not in text
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
    assert {line["comparable"] for line in lines.values()} == {"false"}
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
        assert (lines[row, PAIR]["comparable"], lines[row, PAIR]["gap"]) == ("false", ""), row
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
    assert lines["dkd", PAIR]["comparable"] == "true"


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
    files, *_ = render(tmp_path, "table1-paper", said.append)
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
    cells = [
        cell.model_copy(update={"key": digest(identity)})
        for cell, identity in zip(paper().cells, identities, strict=True)
    ]
    shown = paper().model_copy(update={"cells": tuple(cells)})
    finish(tmp_path, shown, {"student": (69.0, 69.5), "kd": (70.5, 71.0), "dkd": (72.0, 72.5)})
    for cell, identity in zip(cells, identities, strict=True):
        run = store.run(cell.key)
        write_json(run / "cell.json", {"key": cell.key, "label": "a label", "cell": identity})
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
    files, *_ = render(tmp_path, "table1-paper", said.append)
    assert len(said) == 2 and all("results of another cell" in line for line in said)
    assert str(one) in said[0] and str(two) in said[1]
    assert {row: by_row(files)[row]["n"] for row in ("student", "kd", "dkd")} == {"student": "2", "kd": "1", "dkd": "1"}


def test_a_metric_that_a_test_set_does_not_define_is_not_applicable(tmp_path: Path) -> None:
    """COCO's average precision of small objects, where there are none; a metric that nobody knows stays an error."""
    shown = paper()
    finish(tmp_path, shown, {"kd": (70.0, 71.0)})
    small = tuple(column.model_copy(update={"metric": "APs"}) for column in shown.columns)
    lines, text, _ = rendered(tmp_path, shown.model_copy(update={"columns": small}))
    assert (lines["kd", PAIR]["value"], lines["kd", PAIR]["refused"], lines["kd", PAIR]["missing"]) == ("", "2", "0")
    assert "n/a" in text and "AP of small objects (%) is not defined on this test set" in text
    epochs = [{"epoch": 1, "seconds": 1.0, "lr": 0.1, "losses": {}, "metrics": {"top1": 70.0}}]
    for cell in shown.cells:
        Store(tmp_path).run(cell.key).set_metrics(epochs)
    finish(tmp_path, shown, {"kd": (70.0, 71.0)})
    figures = {file.name for file in render(tmp_path, "table1-paper", page=Page(figures=True)).files}
    assert not [name for name in figures if "curves" in name]
    unknown = tuple(column.model_copy(update={"metric": "APx"}) for column in shown.columns)
    with pytest.raises(UserError, match="has no metric 'APx'; known: top1"):
        rendered(tmp_path, shown.model_copy(update={"columns": unknown}))
