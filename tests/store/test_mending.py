"""What is damaged in runs that are done is named, and can be mended: by a look at all runs, or from an archive."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers.stores import TABLE_FOLDER, TEACHER, cell, table

from benchmarks.cli.main import cli
from benchmarks.store import documents
from benchmarks.store.cell import Cell
from benchmarks.store.exchange import export, import_
from benchmarks.store.runs import Run, Store
from benchmarks.store.whole_runs import mend, whole
from kd_methods.errors import Damaged, UserError

KD = cell("kd", 0)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return table(tmp_path / "store", "student", "kd")


def spoil(file: Path) -> bytes:
    """Flip a bit of a file; returns what it was."""
    content = file.read_bytes()
    place = len(content) // 3
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    return content


def verify(output: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["verify", str(output), "--mend", "--device", "cpu", *words])


@pytest.mark.parametrize("name", ["cell.json", "status.json", "environment.json", "metrics.json", "student.pt"])
@pytest.mark.parametrize("one", [KD, TEACHER], ids=["student", "teacher"])
def test_what_is_damaged_is_named_and_set_aside_and_the_run_goes_on(output: Path, name: str, one: Cell) -> None:
    store, said = Store(output), list[str]()
    run = store.run(one)
    spoil(run / name)
    assert whole(output, said.append).damaged[0].path == run.path, "a run that claims to be done, and cannot be read"
    assert len(said) == 1 and said[0].startswith("not taken: ") and str(run / name) in said[0]
    done = verify(output)
    assert done.exit_code == 0 and "1 of 5 runs damaged and set aside; run the tables again" in done.output
    assert (run / f"{name}.damaged-1").is_file() and not run.ended
    assert mend(output, pytest.fail).mended == [], "once"
    with run.lock():
        assert not store.create(one).ended and (run / "cell.json").is_file()


def test_results_that_their_epochs_do_not_say_are_set_aside(output: Path) -> None:
    run, said = Store(output).run(KD), list[str]()
    run.set_status("done", epoch=1, epochs=1, last={"top1": 99.0}, best={"top1": 99.0}, remarks=[])
    assert mend(output, said.append).mended == [run.path.name] and "other results than its epochs" in said[0]
    assert not run.ended


def test_a_network_that_was_never_here_is_no_damage(output: Path) -> None:
    (Store(output).run(KD) / "student.pt").unlink()
    assert mend(output, pytest.fail).mended == []
    with pytest.raises(Damaged, match=r"student\.pt is missing; `import` takes it from an archive"):
        Store(output).run(KD).student()


def test_a_run_in_use_and_an_archive_are_not_mended(output: Path, tmp_path: Path) -> None:
    run = Store(output).run(KD)
    spoil(run / "student.pt")
    with run.lock():
        done = verify(output)
    assert done.exit_code == 1 and f"not complete: being computed here: {run.path.name}" in done.output
    assert run.ended
    with pytest.raises(Damaged, match="`verify OUTPUT --mend` sets it aside"):
        run.student()
    export(output, tmp_path / "runs.zip", [TABLE_FOLDER], say=lambda line: None)
    failed = verify(tmp_path / "runs.zip").exception
    assert isinstance(failed, UserError) and "--mend takes an output folder" in str(failed)


@pytest.mark.parametrize("how", ["changed", "deleted"])
@pytest.mark.parametrize("name", ["metrics.json", "student.pt"])
def test_an_archive_mends_what_it_has_whole(output: Path, tmp_path: Path, name: str, how: str) -> None:
    ours, said = tmp_path / "ours", list[str]()
    export(output, tmp_path / "runs.zip", [TABLE_FOLDER], also=["students"])
    shutil.copytree(output, ours)
    run = Store(ours).run(KD)
    content = spoil(run / name)
    if how == "deleted":
        (run / name).unlink()
    merged = import_(tmp_path / "runs.zip", ours, said.append)
    assert merged.same == 5 and merged.students == (name == "student.pt") and not merged.missing
    assert (run / name).read_bytes() == content and run.ended
    assert (run / f"{name}.damaged-1").is_file() == (how == "changed") == any(str(run / name) in line for line in said)


def test_an_archive_with_other_weights_mends_nothing(output: Path, tmp_path: Path) -> None:
    ours = table(tmp_path / "ours", "student", "kd")
    theirs: Run = Store(output).run(KD)
    theirs.write("student.pt", b"rounded otherwise")
    theirs.set_status("done", **{k: v for k, v in theirs.status.items() if k not in ("state", "key", "files")})
    export(output, tmp_path / "runs.zip", [TABLE_FOLDER], also=["students"])
    run = Store(ours).run(KD)
    spoil(run / "student.pt")
    assert import_(tmp_path / "runs.zip", ours).students == 0
    assert run.damage("student.pt").endswith(documents.MEND)
