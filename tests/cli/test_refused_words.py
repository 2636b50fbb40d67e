"""Words of a command that name nothing, or that nothing would be done with, are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command_line import Call, refused
from helpers.stores import TABLE_FOLDER, cell, table

import benchmarks
from benchmarks.store.exchange import export
from kd_methods.errors import UserError

RUN = cell("kd", 0).key[:8]
VARIANT = "would say which variant of a table"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return table(tmp_path / "store", "student", "kd")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("convert", "", "--to", "timm"), "the word after convert '' names nothing"),
        (("convert", "--all", "", "--to", "timm"), "--all '' names nothing"),
        (("convert", "--all=", "--to", "timm"), "--all '' names nothing"),
        (("convert", RUN, "--to", ""), "--to '' names nothing"),
        (("convert", RUN, "--to", "timm", "--folder", ""), "--folder '' names nothing"),
        (("table2", "--preset", "demo", "--shard", ""), "--shard '' names nothing"),
        (("table2", "--preset", "demo", "--plugin", ""), "--plugin '' names nothing"),
        (("render", TABLE_FOLDER, "--from", ""), "--from '' names nothing"),
        (("render", ""), "the word after render '' names nothing"),
        (("verdicts", ""), "the word after verdicts '' names nothing"),
        (("data", "", "--out", "F"), "the word after data '' names nothing"),
        (("site", TABLE_FOLDER, "", "--out", "F"), f"the word after {TABLE_FOLDER} '' names nothing"),
        (("export", "", "runs.zip"), "the word after export '' names nothing"),
        (("show", "method", ""), "the word after method '' names nothing"),
        (("doctor", "--check", "--methods", ""), "--methods '' names nothing"),
        (("teachers", "verify", ""), "the word after verify '' names nothing"),
        (("teachers", "train", "resnet8", "--protocol", ""), "--protocol '' names nothing"),
        (("",), "the word after ./reproduce.sh '' names nothing"),
    ],
)
def test_an_empty_word_is_a_mistake(call: Call, words: tuple[str, ...], what: str) -> None:
    """A variable of a script that was not set: it does not mean everything, nor nothing."""
    assert what in refused(call, *words)


def test_a_shard_that_is_blank_is_no_shard(call: Call, output: Path) -> None:
    assert "write which part of how many" in refused(call, "table2", "--preset", "demo", "--shard", " ")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("verdicts", "--preset", "nonexistent"), f"--preset {VARIANT}, and none is named"),
        (("data", "--out", "F", "--epochs", "7"), f"--epochs {VARIANT}, and none is named"),
        (("site", "--out", "F", "--settings", "uniform"), f"--settings {VARIANT}, and none is named"),
        (("convert", RUN, "--to", "safetensors", "--preset", "nonexistent"), "a RUN is one cell of one"),
        (("export", RUN, "--preset", "demo", "runs.zip"), f"--preset {VARIANT}, and none is named"),
        (
            ("render", TABLE_FOLDER, "--preset", "short"),
            f"--preset {VARIANT}, and '{TABLE_FOLDER}' is the folder of one",
        ),
        (("verdicts", TABLE_FOLDER, "--compile"), f"--compile {VARIANT}, and '{TABLE_FOLDER}' is the folder of one"),
        (("cite", TABLE_FOLDER, "--holdout", "5"), f"--holdout {VARIANT}, and"),
        (("export", TABLE_FOLDER, "--epochs", "7", "runs.zip"), f"--epochs {VARIANT}, and"),
        (("convert", "--all", TABLE_FOLDER, "--to", "timm", "--epochs", "7", "--preset", "x"), f"--epochs {VARIANT}"),
    ],
)
def test_an_option_that_says_nothing_here_is_refused(
    call: Call, output: Path, words: tuple[str, ...], what: str
) -> None:
    assert what in refused(call, *words, "--output", output)


@pytest.mark.parametrize("kind", ["methods", "keys", "scale", "table"])
def test_a_pair_is_for_a_method(call: Call, kind: str) -> None:
    words = [kind] if kind != "table" else [kind, "table2"]
    assert f"--pair is for show method, not for show {kind}" in refused(call, "show", *words, "--pair", "a-b")


@pytest.mark.parametrize("pair", ["nope", "-resnet8", "resnet8-"])
def test_a_pair_is_two_networks(call: Call, pair: str) -> None:
    assert f"--pair {pair}: write teacher-student" in refused(call, "show", "method", "kd", f"--pair={pair}")


def test_no_machine_has_so_many_threads(call: Call, tmp_path: Path) -> None:
    assert "'--threads'" in refused(call, "teachers", "train", "resnet8", "--threads", "100000")
    with pytest.raises(UserError, match="threads 100000: give at most 1024"):
        benchmarks.run_cell("table2", "kd", "wrn_16_1-resnet8", preset="demo", threads=100_000, output=tmp_path)


def test_what_else_an_archive_gets_has_a_name(output: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown part of an archive 'studnets'; did you mean students"):
        export(output, tmp_path / "runs.zip", [TABLE_FOLDER], also=["studnets"])  # type: ignore[list-item]
    assert not (tmp_path / "runs.zip").exists()


def test_an_archive_without_the_table_says_what_it_has(call: Call, output: Path, tmp_path: Path) -> None:
    file = tmp_path / "runs.zip"
    export(output, file, [TABLE_FOLDER])
    line = refused(call, "render", "table2", "--preset", "demo", "--from", file, "--output", tmp_path / "ours")
    assert f"{file} has no table table2-demo (there: {TABLE_FOLDER})" in line


def test_more_of_a_key_than_the_name_of_its_folder_is_compared(call: Call, output: Path, tmp_path: Path) -> None:
    key = cell("kd", 0).key
    other = key[:40] + ("0" if key[40] != "0" else "1") + key[41:]
    assert call("export", key, tmp_path / "runs.zip", "--output", output)[0] == 0
    assert f"no run '{other}'" in refused(call, "export", other, tmp_path / "runs.zip", "--output", output)
