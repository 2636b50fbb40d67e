"""Export and import from the command line: what is said, and how the commands end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers.stores import TABLE_FOLDER, begin, cell, finish, table

from benchmarks.cli.main import cli
from benchmarks.common.files import sha256_file
from benchmarks.store.runs import Store
from kd_methods.errors import UserError


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, words)))


def test_a_table_is_packed_and_taken(tmp_path: Path) -> None:
    theirs, ours, file = table(tmp_path / "theirs", "student", "kd"), tmp_path / "ours", tmp_path / "runs.zip"
    done = call("export", TABLE_FOLDER, file, "--output", theirs)
    assert done.exit_code == 0 and done.output == f"{file}: 5 runs, 1 with their network\nsha256 {sha256_file(file)}\n"
    done = call("export", TABLE_FOLDER, cell("kd", 0).key[:8], file, "--students", "--output", theirs)
    assert "5 runs, 5 with their network\n" in done.output
    finish(ours, cell("kd", 0), 60.0)
    done = call("import", file, "--output", ours)
    assert done.exit_code == 1 and f"{file}: 4 runs taken, 0 in the store\n" in done.output
    assert f"tables that show more: {TABLE_FOLDER}\n" in done.output
    assert "not complete: 1 run with another result or teacher here, which stays: kd/resnet14-resnet8/s0" in done.output


def test_stopped_runs_go_along_where_they_are_asked_for(tmp_path: Path) -> None:
    theirs, ours, file = table(tmp_path / "theirs", "student", "kd"), tmp_path / "ours", tmp_path / "runs.zip"
    stopped = cell("kd", 1)
    shutil.rmtree(Store(theirs).run(stopped).path)
    begin(theirs, stopped, 2)
    done = call("export", TABLE_FOLDER, file, "--output", theirs)
    assert done.exit_code == 1 and "not complete: 1 cell without a result left out\n" in done.output
    done = call("export", TABLE_FOLDER, file, "--unfinished", "--output", theirs)
    assert done.exit_code == 0 and f"{file}: 4 runs, 1 with their network, 1 unfinished run\n" in done.output
    done = call("import", file, "--output", ours)
    assert (
        done.exit_code == 0
        and f"unfinished, to go on with the command of their table: {stopped.label}\n" in done.output
    )
    assert Store(ours).run(stopped).saved_epochs == 2


@pytest.mark.parametrize("how", ["failed", "damaged", "absent"])
def test_a_table_of_which_a_cell_is_left_out_is_not_complete(how: str, tmp_path: Path) -> None:
    theirs, file = table(tmp_path / "theirs", "student", "kd"), tmp_path / "runs.zip"
    run = Store(theirs).run(cell("kd", 0))
    if how == "failed":
        run.set_status("failed", message="why")
    elif how == "damaged":
        (run / "status.json").write_text("{")
    else:
        shutil.rmtree(run.path)
    done = call("export", TABLE_FOLDER, file, "--output", theirs)
    assert done.exit_code == 1 and f"{file}: 4 runs, 1 with their network\n" in done.output
    assert "not complete: 1 cell without a result left out" in done.output
    assert (f"left out: {run / 'status.json'}" in done.output) == (how == "damaged")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("export", TABLE_FOLDER, "runs"), "the last word names the archive"),
        (("export", "tabel1", "runs.zip"), "no run 'tabel1' in"),
        (("export", "table1", "runs.zip"), "no table 'table1-paper' in"),
        (("export", "table1", "--preset", "short", "--epochs", "5", "runs.zip"), "no table 'table1-short-epochs5' in"),
        (("import", "absent.zip"), "there is no file absent.zip"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], error: str, tmp_path: Path) -> None:
    output = table(tmp_path / "store", "kd")
    failed = call(*words, "--output", output).exception
    assert isinstance(failed, UserError) and error in str(failed)
