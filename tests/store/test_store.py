"""The store: identities of cells, files written whole or not at all, and runs held by one process."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import files
from benchmarks.common.files import canonical, digest, read_json, sha256_file, write_bytes, write_json, write_text
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.store.runs import Run, Store
from kd_methods.errors import UserError

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


def test_a_folder_of_another_cell_is_not_taken(tmp_path: Path):
    store = Store(tmp_path)
    run = store.run(CELL)
    write_json(run / "cell.json", {"key": CELL.key[:16] + "0" * 48, "label": "another", "cell": {}})
    with pytest.raises(UserError, match="another"):
        store.create(CELL)


def test_run_files(tmp_path: Path):
    run = Run(tmp_path / "run")
    assert run.metrics == []
    run.set_status("running", epoch=2)
    run.set_metrics([{"epoch": 1}])
    assert run.state == "running" and run.status["epoch"] == 2 and run.metrics == [{"epoch": 1}]


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
            [sys.executable, "-c", script, *map(str, own)], cwd=REPO, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for own in arguments
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


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"), files.locked(tmp_path / "file"):
        pass
