"""Tables of archives: what ships with the suite is whole, and gives the page that lies beside it."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.stores import TABLE_FOLDER, table

from benchmarks.cli.main import cli
from benchmarks.common.places import TABLES
from benchmarks.report.archived import archive, render_archive
from benchmarks.store import exchange
from benchmarks.store.selection import Selection
from kd_methods.errors import UserError

SHIPPED = sorted((TABLES / "reproduced").glob("*.zip"))
FIGURES = ("row", "pair", "n", "mean_last", "std_last", "mean_best", "std_best")


def figures(text: str) -> list[tuple[str, ...]]:
    return [tuple(line[name] for name in FIGURES) for line in csv.DictReader(io.StringIO(text))]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_what_ships_gives_the_page_beside_it(file: Path, tmp_path: Path) -> None:
    assert file.stat().st_size < 2**20, "no weights"
    files, text, _ = render_archive(file, file.stem, tmp_path, pytest.fail)
    made = next(path for path in files if path.suffix == ".csv" and not path.stem.endswith("-cost"))
    assert figures(made.read_text()) == figures(file.with_suffix(".csv").read_text()), "write page and figures again"
    page = file.with_suffix(".md").read_text()
    means = {f"{float(line[3]):.2f}" for line in figures(made.read_text()) if line[3]}
    assert means and all(mean in page and mean in text for mean in means)
    with zipfile.ZipFile(file) as packed:
        runs = sum(name.endswith("/cell.json") for name in packed.namelist())
    seeds = max(int(line[2] or 0) for line in figures(made.read_text()))
    assert len(exchange.import_(file, tmp_path / "store").added) == runs >= seeds > 0


def test_an_archive_is_rendered_beside_the_store(tmp_path: Path) -> None:
    store, output = table(tmp_path / "store", "student", "kd"), tmp_path / "output"
    exchange.export(store, tmp_path / f"{TABLE_FOLDER}.zip", [TABLE_FOLDER])
    files, text, _ = render_archive(archive(str(tmp_path), TABLE_FOLDER), TABLE_FOLDER, output, pytest.fail)
    assert {file.parent for file in files} == {output / "reproduced" / TABLE_FOLDER} and "KD" in text
    assert {path.name for path in output.iterdir()} == {"reproduced"}
    _, chosen, _ = render_archive(
        tmp_path / f"{TABLE_FOLDER}.zip", TABLE_FOLDER, output, lambda line: None, Selection(rows=("student",))
    )
    assert "STUDENT" in chosen and "KD" not in chosen
    with pytest.raises(UserError, match=f"no archive of table other .there: {TABLE_FOLDER}."):
        archive(str(tmp_path), "other")


def test_the_command_says_what_there_is(tmp_path: Path) -> None:
    words = ["render", "table1", "--preset", "short", "--from", "reproduced", "--output", str(tmp_path)]
    failed = CliRunner().invoke(cli, words).exception
    assert isinstance(failed, UserError) and "--from reproduced has no archive of table table1-short" in str(failed)
    failed = CliRunner().invoke(cli, [*words[:-4], "--from", "absent.zip", *words[-2:]]).exception
    assert isinstance(failed, UserError) and "there is no file absent.zip" in str(failed)
