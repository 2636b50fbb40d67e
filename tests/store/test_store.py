"""The store: identities of cells, files written whole or not at all, and runs held by one process."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import files
from benchmarks.common.files import canonical, digest, read_json, sha256_file, write_bytes, write_json, write_text
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.store.runs import Run, Store
from kd_methods.errors import Damaged, DiskError, UserError

REPO = Path(__file__).parents[2]

TEACHER = TeacherRef("resnet56", mean=(0.5, 0.25, 0.125), std=(0.2, 0.2, 0.2), weights="0123456789abcdef", entry="mine")
CELL = Cell(
    task="cifar100",
    data="fedcba9876543210",
    protocol={"name": "p", "version": 1, "epochs": 240, "mean": [0.5, 0.5, 0.5]},
    lr=0.05,
    student="resnet20",
    method="kd",
    method_version=1,
    settings={"temperature": 4.0, "alpha": 0.9, "active": [1, 2]},
    seed=3,
    teacher=TEACHER,
    versions={"task:cifar100": 1, "network:resnet20": 1, "network:resnet56": 1},
    plugins={"method:kd": "00ff"},
)
KEY = "84c225120a95edf60e95a886f399927bba90f6d7f9be393e407a0b965c1c3b3e"
"""What names CELL's run today. If this changes, all stored results are orphaned: raise SCHEMA knowingly."""

CHANGES: dict[str, Any] = {
    "init": "first",
    "start": TEACHER,
    "task": "cifar10",
    "data": "0",
    "protocol": {**CELL.protocol, "epochs": 241},
    "lr": 0.01,
    "student": "resnet8",
    "method": "dkd",
    "method_version": 2,
    "settings": {**CELL.settings, "alpha": 0.8},
    "seed": 4,
    "teacher": None,
    "versions": {**CELL.versions, "network:resnet20": 2},
    "plugins": {"method:kd": "00fe"},
}
TEACHER_CHANGES: dict[str, Any] = {
    "network": "resnet110",
    "mean": (0.5, 0.25, 0.126),
    "std": (0.2, 0.2, 0.21),
    "weights": "0123456789abcdee",
}


def test_the_key_of_a_fixed_cell():
    assert CELL.key == KEY


def test_every_field_is_in_the_key():
    assert set(CHANGES) == {field.name for field in fields(Cell)}
    keys = {name: replace(CELL, **{name: value}).key for name, value in CHANGES.items()}
    assert len({CELL.key, *keys.values()}) == len(CHANGES) + 1
    assert replace(CELL, seed=4).label != CELL.label


def test_every_field_of_the_teacher_is_in_the_key_but_its_name():
    assert set(TEACHER_CHANGES) | {"cell", "entry"} == {field.name for field in fields(TeacherRef)}
    teachers = [replace(TEACHER, **{name: value}) for name, value in TEACHER_CHANGES.items()]
    teachers.append(replace(TEACHER, weights="", cell="0123456789abcdef"))  # a file and a cell of one digest differ
    assert len({CELL.key, *(replace(CELL, teacher=t).key for t in teachers)}) == len(teachers) + 1
    assert replace(CELL, teacher=replace(TEACHER, entry="yours")).key == CELL.key


def test_the_key_ignores_order_and_kind_of_sequence():
    same = replace(CELL, settings={"active": (1, 2), "alpha": 0.9, "temperature": 4.0})
    assert same.key == CELL.key
    assert replace(CELL, settings={"active": (2, 1), "alpha": 0.9, "temperature": 4.0}).key != CELL.key


def test_groups_share_all_that_the_teachers_pass_depends_on():
    alike = ("lr", "student", "method", "method_version", "settings", "versions", "plugins", "init", "start")
    for name, value in CHANGES.items():
        assert (replace(CELL, **{name: value}).group() == CELL.group()) == (name in alike), name


def test_canonical_json_has_one_text():
    assert canonical({"b": 1, "a": (1, 2)}) == '{"a":[1,2],"b":1}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    with pytest.raises(ValueError):
        canonical({"a": float("nan")})


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def failing(code: int) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("place", ["fsync", "fdopen", "replace"])
def test_a_failed_write_leaves_the_old_file(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "status.json"
    write_json(path, {"state": "old"})
    if place == "replace":
        monkeypatch.setattr(Path, "replace", failing(errno.EIO))
    else:
        monkeypatch.setattr(files.os, place, failing(errno.ENOSPC))
    with pytest.raises(UserError, match=r"status\.json") as error:
        write_json(path, {"state": "new"})
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert read_json(path) == {"state": "old"} and hidden(tmp_path) == []
    write_json(path, {"state": "new"})
    assert read_json(path) == {"state": "new"} and hidden(tmp_path) == []


def test_content_is_on_the_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, seen = tmp_path / "file", []
    write_bytes(path, b"old")
    fsync = os.fsync

    def watch(handle: int) -> None:
        seen.append((os.fstat(handle).st_size, path.read_bytes()))
        fsync(handle)

    monkeypatch.setattr(files.os, "fsync", watch)
    write_bytes(path, b"longer than before")
    assert seen[0] == (18, b"old") and path.read_bytes() == b"longer than before"


def test_a_new_file_has_the_usual_permissions(tmp_path: Path):
    write_text(tmp_path / "ours", "x")
    (tmp_path / "usual").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_parent_that_is_a_file_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "file" / "below", "y")
    with pytest.raises(UserError, match="cannot write"), Run(tmp_path / "file" / "run").lock():
        pass
    assert (tmp_path / "file").read_text() == "x"


def test_read_json(tmp_path: Path):
    assert read_json(tmp_path / "none.json") is None
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"half\.json line 1 column 7 is damaged.*delete"):
        read_json(tmp_path / "half.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="damaged"):
        read_json(tmp_path / "bytes.json")


def test_sha256_file(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_create_writes_the_identity_once(tmp_path: Path):
    store = Store(tmp_path)
    assert store.run(CELL).state == "missing" and not store.run(CELL).path.exists()
    run = store.create(CELL)
    record = read_json(run / "cell.json")
    assert record["key"] == CELL.key and digest(record["cell"]) == CELL.key
    before = (run / "cell.json").stat().st_mtime_ns
    assert store.create(CELL).path == run.path == store.run(CELL.key).path
    assert (run / "cell.json").stat().st_mtime_ns == before
    assert store.create(replace(CELL, seed=9)).path != run.path


def test_a_run_that_was_not_begun_has_no_facts(tmp_path: Path):
    run = Run(tmp_path / "run")
    assert run.metrics == [] and run.environments == [] and run.state == "missing" and not run.ended
    run.set_status("running", epoch=2)
    run.set_metrics([{"epoch": 1, "metrics": {}}])
    assert run.state == "running" and run.status["epoch"] == 2 and run.metrics == [{"epoch": 1, "metrics": {}}]


FACTS = {"commit": "abc", "machine": "m", "versions": {"torch": "2.9", "cuda": None}}


def finished(store: Store, cell: Cell = CELL) -> Run:
    """A run as training leaves it."""
    run = store.create(cell)
    run.add_environment(FACTS, 1)
    run.write("checkpoint.pt", b"a checkpoint")
    run.write("student.pt", b"weights")
    run.set_metrics([{"epoch": 1, "phase": "", "lr": 0.1, "metrics": {"top1": 70.5}, "losses": {}, "seconds": 1.0}])
    run.set_status("done", epoch=1, epochs=1, last={"top1": 70.5}, best={"top1": 70.5}, remarks=[])
    return run


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_a_finished_run_is_whole(tmp_path: Path):
    store, said = Store(tmp_path), list[str]()
    run = finished(store)
    before = content(run.path)
    assert run.ended and not any(map(run.damage, ("environment.json", "metrics.json", "student.pt")))
    assert run.student().read_bytes() == b"weights" and len(run.metrics) == len(run.environments) == 1
    store.create(CELL, said.append)
    assert content(run.path) == before and said == []


LOST = {
    "cell.json": {"cell.json"},
    "status.json": {"status.json"},
    "metrics.json": {"metrics.json", "status.json"},
    "student.pt": {"student.pt", "status.json"},
    "environment.json": {"environment.json", "status.json", "checkpoint.pt"},
}
"""What is set aside with a file: with all but the environment the run goes on from its checkpoint."""


@pytest.mark.parametrize("name", sorted(LOST))
@pytest.mark.parametrize("how", ["flipped", "half", "empty", "null", "deep", "digits", "missing"])
def test_what_is_damaged_is_named_set_aside_and_computed_again(tmp_path: Path, name: str, how: str):
    store, said = Store(tmp_path), list[str]()
    run = finished(store)
    before = content(run.path)
    whole = before[name]
    place = whole.index(
        b"0.05" if name == "cell.json" else b"70.5" if b"70.5" in whole else b"2.9" if b"2.9" in whole else b"w"
    )
    spoilt = {
        "flipped": whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "null": b"null",
        "deep": b"[" * 100_000,
        "digits": b"9" * 10_000,
        "missing": None,
    }[how]
    if spoilt is None:
        (run / name).unlink()
    else:
        (run / name).write_bytes(spoilt)
    if how == "missing" and name in ("cell.json", "status.json"):  # as before the first one was written
        assert store.create(CELL, said.append).ended == (name == "cell.json") and said == []
        return
    if name in ("status.json", "environment.json"):
        assert run.state == "damaged" and str(run / name) in run.status["message"]
    if name == "metrics.json":
        with pytest.raises(Damaged, match=r"metrics\.json"):
            _ = run.metrics
    mended = store.create(CELL, said.append)
    (line,) = said
    assert str(run / name) in line and "\n" not in line
    assert mended.ended == (name == "cell.json")
    left = content(run.path)
    gone = LOST[name] - ({name} if spoilt is None else set())
    assert {old for old in before if f"{old}.damaged-1" in left} == gone
    assert name not in left or name == "cell.json"
    for old in gone:
        assert left[f"{old}.damaged-1"] == (spoilt if old == name else before[old])
    assert {old: left[old] for old in before.keys() - LOST[name]} == {
        old: before[old] for old in before.keys() - LOST[name]
    }


def test_no_bit_of_a_status_changes_unseen(tmp_path: Path):
    run = finished(Store(tmp_path))
    facts, path = run.facts(), run / "status.json"
    whole = path.read_bytes()
    seen = Counter[str]()
    for place, bit in itertools.product(range(len(whole)), (0, 5)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        read_again = run.facts()
        if read_again.status["state"] != "damaged":  # a blank may be another blank, and a seal no seal
            unsealed = {key: value for key, value in read_again.status.items() if key in facts.status}
            assert unsealed == facts.status and read_again.environments == facts.environments, (place, bit)
        seen[read_again.status["state"]] += 1
    assert seen["damaged"] > 700, seen


def test_what_old_runs_wrote_is_read(tmp_path: Path):
    """Without digests or the cell's key."""
    store, said = Store(tmp_path), list[str]()
    run = finished(store)
    status = {key: value for key, value in run.status.items() if key not in ("key", "files")}
    write_json(run / "status.json", status)
    (run / "student.pt").write_bytes(b"something else")
    assert run.facts().status == status and run.metrics and run.student()
    assert store.create(CELL, said.append).ended and said == []


def test_a_run_of_another_cell_is_set_aside_as_a_whole(tmp_path: Path):
    store, said = Store(tmp_path), list[str]()
    other = finished(store, replace(CELL, seed=9))
    before = content(other.path)
    other.path.rename(store.run(CELL).path)
    run = store.create(CELL, said.append)
    (line,) = said
    assert str(run.path) in line and "another cell" in line and replace(CELL, seed=9).label in line
    left = content(run.path)
    assert {name: left.get(f"{name}.damaged-1") for name in before} == before
    assert run.state == "missing" and read_json(run / "cell.json")["key"] == CELL.key


def test_a_student_that_is_damaged_is_computed_again(tmp_path: Path):
    run = finished(Store(tmp_path))
    (run / "student.pt").write_bytes(b"weightz")
    with run.lock(), pytest.raises(Damaged, match=r"student\.pt is damaged"):
        run.student(mend=True)
    with pytest.raises(Damaged, match=r"student\.pt is damaged"):
        run.student()
    assert run.ended, "who only reads sets nothing aside"
    with pytest.raises(Damaged, match=r"student\.pt is damaged"):
        run.student(mend=True)
    assert run.state == "missing" and (run / "student.pt.damaged-1").read_bytes() == b"weightz"


@pytest.mark.parametrize("name", ["status.json", "environment.json", "metrics.json", "student.pt", "cell.json"])
def test_what_cannot_be_read_now_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    store = Store(tmp_path)
    run, read = finished(store), Path.open
    before = content(run.path)

    def failing_one(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", failing_one)
        with pytest.raises(DiskError, match=rf"cannot read .*{name}: Input/output error"):
            store.create(CELL)
    assert content(run.path) == before


def test_epochs_from_which_a_run_goes_on(tmp_path: Path):
    run = Run(tmp_path / "run", "a" * 64)
    assert run.saved_epochs == 0
    run.set_metrics(
        [{"epoch": 0, "phase": "first", "metrics": {}}, {"epoch": 1, "metrics": {}}, {"epoch": 2, "metrics": {}}]
    )
    run.set_status("interrupted", epoch=2)
    assert run.saved_epochs == 0, "there is nothing to go on from"
    run.write("checkpoint.pt", b"")
    assert run.saved_epochs == 2
    assert Run(run.path, "b" * 64).saved_epochs == 0, "another cell's"
    run.set_status("done", last={}, best={})
    assert run.saved_epochs == 0


def facts(torch: str = "2.14", **arithmetic: object) -> dict[str, object]:
    versions = {"torch": torch, "python": "3.11", "cuda": None}
    return {"commit": "", "device": "cpu", "machine": "m", "versions": versions, "arithmetic": arithmetic}


def test_what_changes_the_bits_of_a_run_is_told_and_kept(tmp_path: Path):
    run = Run(tmp_path / "run")
    assert run.add_environment(facts(threads=2, limits=[], summary="a"), 1) == ""
    assert run.add_environment(facts(threads=2, limits=[], summary="b"), 1, 7) == "", "it says what is computed with"
    change = run.add_environment(facts("2.15", threads=1, limits=["A=1", "B=2"]), 3, 4)
    assert (
        change == "computed with limits A=1 B=2 instead of none, threads 1 instead of 2, torch 2.15 instead of 2.14 "
        "from epoch 3 on"
    )
    assert run.changes == [change]
    assert [(known["from_epoch"], known["from_step"]) for known in run.environments] == [(1, 0), (1, 7), (3, 4)]
    # Killed before it saved anything: what it computed is gone, and its record with it.
    assert run.add_environment(facts(threads=2, limits=[]), 3, 4) == "" and run.changes == []


def test_a_run_of_before_arithmetic_was_recorded_goes_on(tmp_path: Path):
    run = Run(tmp_path / "run")
    old = {"device": "cpu", "machine": "m, 2 threads", "versions": {"torch": "2.14", "cuda": None}, "commit": ""}
    write_json(run / "environment.json", [{**old, "date": "2026-01-01", "from_epoch": 1}])
    assert run.add_environment(facts(threads=1), 2) == ""
    assert (
        run.add_environment({**facts(threads=1), "device": "cuda:0"}, 3)
        == "computed with device cuda instead of cpu from epoch 3 on"
    )


HOLD = """
import sys
from pathlib import Path
from benchmarks.store.runs import Run

with Run(Path(sys.argv[1])).lock() as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=REPO, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def test_a_run_is_held_by_one_process_until_it_ends_however_it_ends(tmp_path: Path):
    run = Run(tmp_path / "run")
    first = hold(run.path)
    assert first.stdout and first.stdout.readline() == "True\n"
    with run.lock() as mine:
        assert not mine
    with Run(tmp_path / "other").lock() as mine:
        assert mine
    first.kill()
    first.communicate()
    with run.lock() as mine:
        assert mine
        second = hold(run.path)
        assert second.stdout and second.stdout.readline() == "False\n"
        second.communicate("")
    third = hold(run.path)
    assert third.stdout and third.stdout.readline() == "True\n"
    third.communicate("")


def test_taking_a_run_clears_what_a_killed_writer_left_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Run(tmp_path / "run")
    run.write("checkpoint.pt", b"whole")
    theirs = {
        f".{name}.{end}" for name in ("student.pt", "checkpoint.pt", "status.json") for end in ("bak", "original")
    }
    for name in theirs:
        (run / name).write_bytes(b"the user's")
    with monkeypatch.context() as killed:
        killed.setattr(files.os, "fsync", failing(errno.EIO))
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(UserError):
            run.write("checkpoint.pt", b"ha")
    assert len(hidden(run.path)) == len(theirs) + 1
    with run.lock():
        assert (run / "checkpoint.pt").read_bytes() == b"whole"
        assert set(hidden(run.path)) == {*theirs, ".lock"}


ADD = """
import sys
from pathlib import Path
from benchmarks.common.files import locked, read_json, write_json

path = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for i in range(20):
    with locked(path.parent):
        write_json(path, [*(read_json(path) or []), f"{sys.argv[2]}-{i}"])
"""


def together(script: str, arguments: Sequence[Sequence[str | Path]]) -> None:
    """Run a script in several processes that begin at the same moment."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, words)], cwd=REPO, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for words in arguments
    ]  # fmt: skip
    for process in started:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err


def test_what_several_processes_change_in_turns_loses_nothing(tmp_path: Path):
    path = tmp_path / "below" / "list.json"
    together(ADD, [(path, name) for name in "abc"])
    assert sorted(read_json(path)) == sorted(f"{name}-{i}" for name in "abc" for i in range(20))


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"), files.locked(tmp_path / "file"):
        pass
    monkeypatch.setattr("fcntl.flock", failing(errno.ENOSYS))  # as of a file system without locks
    words = rf"cannot lock {tmp_path}\S*: Function not implemented; choose a folder on a file system with locks"
    for lock in (files.locked(tmp_path), Store(tmp_path).run("a" * 64).lock()):
        with pytest.raises(DiskError, match=words), lock:
            pass


TRY = """
import sys
from pathlib import Path
from benchmarks.store.runs import Store

print("ready", flush=True)
sys.stdin.readline()
for _ in range(200):
    Store(Path(sys.argv[1])).check_writable()
"""


def test_jobs_that_begin_at_the_same_moment_may_all_write(tmp_path: Path):
    together(TRY, [(tmp_path,)] * 3)
