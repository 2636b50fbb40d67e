"""Cells of another shape, as a later version or who means ill may write them: refused, or said of that run alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.stores import TABLE_FOLDER, cell, finish, place, shown

from benchmarks.common.files import digest, write_json
from benchmarks.driver.convert import convert
from benchmarks.driver.verify import verify
from benchmarks.report.explain import asked
from benchmarks.store import archives, documents, manifest, names
from benchmarks.store.exchange import import_
from benchmarks.store.runs import Store
from benchmarks.store.whole_runs import checked, mend
from kd_methods.errors import Damaged, UserError

KD = cell("kd", 0)
CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a teacher that is a word": lambda one: one.update(teacher="abc"),
    "a teacher's cell that is a list": lambda one: one["teacher"].update(cell=["a"]),
    "a teacher with more": lambda one: one["teacher"].update(new=1),
    "another field": lambda one: one.update(new=1),
    "a field of another name": lambda one: one.update(method_version=1),
    "a method that is a word": lambda one: one.update(method="student"),
    "a method without settings": lambda one: one["method"].pop("settings"),
    "a protocol that is a word": lambda one: one.update(protocol="x"),
    "an optimiser that is a word": lambda one: one["protocol"].update(optimizer="sgd"),
    "a seed that is a word": lambda one: one.update(seed="x"),
    "no seed": lambda one: one.pop("seed"),
    "a start from no teacher": lambda one: one.update(teacher=None, init="first"),
    "nothing of a cell": lambda one: one.clear(),
}


def foreign(output: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A store with one run whose identity was changed, and its key with it; returns the folder of the run."""
    finish(output, KD, 70.0)
    run = Store(output).run(KD)
    status = run.status
    document = json.loads((run / "cell.json").read_text())
    change(document["cell"])
    document["key"] = digest(document["cell"])
    write_json(run / "cell.json", document)
    documents.write(run / "status.json", {**status, "key": document["key"]})
    return run.path.rename(run.path.with_name(document["key"][:16]))


def packed(folder: Path) -> Path:
    file = folder.parents[2] / "runs.zip"
    members = {f"runs/{folder.name}/{path.name}": path for path in folder.glob("[!.]*") if path.name != "student.pt"}
    archives.write(file, members)
    return file


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_archive_with_such_a_cell_is_refused(change: Any, tmp_path: Path) -> None:
    file = packed(foreign(tmp_path / "theirs", change))
    with pytest.raises(UserError, match=r"cell\.json.*; nothing was taken from it") as caught:
        import_(file, tmp_path / "ours")
    assert str(file) in str(caught.value) and not (tmp_path / "ours" / "runs").exists()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_in_a_store_it_is_said_of_that_run_and_the_rest_goes_on(change: Any, tmp_path: Path) -> None:
    folder, said = foreign(tmp_path, change), list[str]()
    finish(tmp_path, replace(KD, seed=1), 71.0)
    claims = verify(tmp_path, replace(place(tmp_path), say=said.append))
    assert len(claims) == 2 and all(claim.reason and not claim.holds for claim in claims), claims
    assert any(folder.name in line or "later one" in line or "none of this version" in line for line in said), said
    with pytest.raises(UserError):
        convert(folder.name, "safetensors", tmp_path / "converted", place(tmp_path))


def test_numbers_stay_what_they_are(tmp_path: Path) -> None:
    """A whole number and a fraction have other texts, and the key is a digest of the text."""
    one = replace(KD, lr=1, teacher=replace(KD.teacher, mean=(0, 0.5), std=(1, 2)) if KD.teacher else None)
    finish(tmp_path, one, 70.0)
    assert checked(Store(tmp_path).run(one)).run.key == one.key
    assert mend(tmp_path, pytest.fail).mended == []


@pytest.mark.parametrize("protocol", [{}, {"epochs": "x"}, {"epochs": []}])
def test_of_a_manifest_with_another_protocol_no_words_are_known(protocol: dict[str, Any]) -> None:
    assert asked(shown(KD, name="table2", protocol=protocol), "table2-demo") is None


@pytest.mark.parametrize("key", ["..", ".", "../../x", "/etc", "a/../b", ""])
def test_no_row_or_column_names_a_folder_above(key: str, tmp_path: Path) -> None:
    plan = shown(KD)
    row, place_of = plan.rows[0].model_copy(update={"key": key}), plan.cells[0].model_copy(update={"row": key})
    odd = plan.model_copy(update={"rows": (row,), "cells": (place_of,), "row_order": (key,)})
    for name in names.of_table(odd):
        folder = (tmp_path / "converted" / name).resolve()
        assert folder.is_relative_to(tmp_path / "converted") and len(Path(name).parts) == 3
    if key in ("..", "../../x", "/etc", "a/../b"):
        write_json(manifest.path(tmp_path, TABLE_FOLDER), odd.model_dump(mode="json"))
        finish(tmp_path, KD, 70.0)
        run = Store(tmp_path).run(KD).path
        members = {f"runs/{run.name}/{path.name}": path for path in run.glob("[!.]*")}
        plan_file = {f"tables/{TABLE_FOLDER}/plan.json": manifest.path(tmp_path, TABLE_FOLDER)}
        archives.write(tmp_path / "runs.zip", {**members, **plan_file})
        with pytest.raises(Damaged, match="has a row"):
            import_(tmp_path / "runs.zip", tmp_path / "ours")
