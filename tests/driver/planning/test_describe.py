"""What a plan says in the manifest of its table: settings that differ, our choices, what a method refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.manifests import TABLE, Lab, note

from benchmarks.driver.planning.describe import describe
from benchmarks.driver.planning.missing import measured_teachers
from benchmarks.driver.planning.plan import Request, make
from benchmarks.report.collect import render
from benchmarks.store import documents, manifest
from benchmarks.store.manifest.shapes import Manifest
from benchmarks.store.runs import Store
from kd_methods import registry


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


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
    assert {c.row: c.published_settings for c in changed} == {
        "student": True, "kd": True, "kd-dot": True, "kd-dot:temperature=2": False,
    }  # fmt: skip


def test_settings_of_a_combination_are_named_by_part(lab: Lab) -> None:
    shown = lab.manifest(methods=("sp+kd",), overrides=("sp+kd.kd.temperature=2", "sp+kd.sp.beta=10"))
    assert [row.title for row in shown.rows] == ["SP + KD", "SP + KD (kd.T = 2, sp.β = 10)"]
    lab.table.write_text(TABLE.replace("dkd]", "{id: both, method: sp+kd, settings: {kd: {temperature: 2}}}]"))
    shown = lab.manifest(methods=("both",), overrides=("both.sp.beta=10",))
    assert note(shown, "both") == note(shown, "both:sp.beta=10") == "kd.temperature 2.0", "the title says the rest"


def test_a_method_that_refuses_a_pair_shows_as_not_for_it(lab: Lab) -> None:
    shown = manifest.save(lab.folder, "mine", lab.manifest(methods=("kd",)))
    for cell in shown.cells:
        Store(lab.folder).run(cell.key).set_status("refused", message="method 'kd' is not for 'tests'")
    _, text, _ = render(lab.folder, "mine")
    assert text.count("n/a") == 3 and "is not for 'tests'" in text and "fail" not in text


def chosen(shown: Manifest) -> dict[str, dict[str, Any]]:
    """What the rows set that nobody published, in all columns."""
    assert not [choice for row in shown.rows for choice in row.our_choice if choice.columns]
    return {row.key: {choice.key: choice.value for choice in row.our_choice} for row in shown.rows}


def test_settings_that_nobody_published_are_marked(lab: Lab) -> None:
    """Those of the demonstrations' recipes are data with a source, and the source is us."""
    rows = chosen(lab.manifest(methods=("kd", "dkd", "sp+dkd", "at")))
    assert rows == {"kd": {}, "dkd": {"beta": 2.0}, "sp+dkd": {"dkd.beta": 2.0}, "at": {"beta": 250.0}}
    assert chosen(lab.manifest(methods=("dkd",), uniform=True)) == {"dkd": {}}


def test_what_is_published_for_a_pair_is_not_our_choice_there(lab: Lab) -> None:
    """CAT-KD's authors give beta for some pairs; the card's default is chosen for the others."""
    pairs = ("resnet56-resnet20", "resnet110-resnet20")
    plan = make(Request("table1", pairs=pairs, methods=("cat_kd", "ickd+cat_kd")), lab.workspace, stated=True)
    default = registry.settings("cat_kd").model_dump()["beta"]
    for row in describe(plan, lab.zoo, {}, "a machine").rows:
        betas = {choice.columns: choice.value for choice in row.our_choice if choice.key.endswith("beta")}
        assert betas == {("resnet110-resnet20",): default}, row.key


def test_settings_of_a_row_that_are_ours_are_marked(lab: Lab) -> None:
    table_rows = "{id: mine, method: sp+kd, settings: {kd: {temperature: 2}}, our_choice: true}]"
    lab.table.write_text(TABLE.replace("dkd]", table_rows))
    assert chosen(lab.manifest(methods=("mine", "kd"))) == {"mine": {"kd.temperature": 2.0}, "kd": {}}


METRICS = (("one", ""), ("five", ", metric: top5"))


def test_a_teacher_measures_each_column_s_metric(lab: Lab) -> None:
    """Not the task's in all of them."""
    one, five = (f"{{id: {id}, teacher: resnet14, student: resnet8{metric}}}" for id, metric in METRICS)
    columns = f"[{one}, {five}]"
    lab.table.write_text(TABLE.replace("[resnet14-resnet8, wrn_16_1-resnet8]", columns))
    lab.teacher("resnet14", 0)
    plan = make(Request(table=str(lab.table), methods=("kd",)), lab.workspace)
    measured = measured_teachers(plan, True, lab.workspace, any_teacher=True)
    for accuracies in (measured, measured_teachers(plan, False, lab.workspace, any_teacher=True)):
        top1, top5 = (column.teacher.accuracy for column in describe(plan, lab.zoo, accuracies, "a machine").columns)
        assert top1 is not None and top5 is not None and top1 < top5
    (file,) = lab.workspace.output.glob("teachers/*.json")
    earlier = json.loads(file.read_text())
    documents.write(file, {name: earlier[name] for name in ("entry", "value")})  # as earlier versions wrote it
    assert measured_teachers(plan, False, lab.workspace, any_teacher=True) == measured, "it is measured again"


def test_rows_of_one_title_are_told_apart(lab: Lab) -> None:
    """Pages, figures and curves go by titles."""
    rows = "{id: kd.t1, method: kd, settings: {temperature: 1}}, {id: kd.t4, method: kd}]"
    lab.table.write_text(TABLE.replace("kd, dkd]", rows))
    assert [row.title for row in lab.manifest().rows] == ["Student (no KD)", "KD (kd.t1)", "KD (kd.t4)"]
