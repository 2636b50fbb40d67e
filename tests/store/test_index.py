"""The store's index says what the folders say, whatever becomes of it, and whoever else uses it."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.common.files import write_json
from benchmarks.store import documents, index
from benchmarks.store.runs import Facts, Run, Store

REPO = Path(__file__).parents[2]
COUNT = 30
FACTS = {"date": "2026-01-02", "commit": "abc", "machine": "m", "versions": {"torch": "2.9"}}


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled as soon as the clock of the file system has gone on."""
    monkeypatch.setattr(index, "SETTLED", 2 * 10**7)


def wait() -> None:
    time.sleep(0.05)


def finish(run: Run, top1: float) -> None:
    write_json(run / "environment.json", [FACTS])
    run.set_status("done", last={"top1": top1}, best={"top1": top1}, remarks=[])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    for i in range(COUNT):
        finish(store.run(key(i)), 70.0 + i)
    store.run(key(COUNT)).set_status("failed", message="why")
    wait()
    return store


def key(i: int) -> str:
    return f"{i:04d}" * 16


KEYS = [key(i) for i in range(COUNT + 2)]
"""The last but one failed, the last is missing."""


def from_folders(store: Store) -> dict[str, Facts]:
    return {key: store.run(key).facts() for key in KEYS}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The documents that are read from folders."""
    seen: list[Path] = []
    read = documents.read

    def watch(path: Path, *arguments: object) -> object:
        seen.append(path)
        return read(path, *arguments)

    monkeypatch.setattr(documents, "read", watch)
    yield seen


def test_what_is_known_is_not_read_again(store: Store, reads: list[Path]) -> None:
    expected = from_folders(store)
    assert store.facts(KEYS) == expected
    reads.clear()
    assert store.facts(KEYS) == expected
    assert set(reads) == {store.run(KEYS[-1]) / "status.json"}, "what is missing may come"
    assert Store(store.root).facts(reversed(KEYS[3:5])) == {key: expected[key] for key in KEYS[3:5]}


def test_what_has_changed_is_read_again(store: Store, reads: list[Path]) -> None:
    store.facts(KEYS)
    finish(store.run(KEYS[0]), 1.0)  # another value of the same length and form, at once
    (store.run(KEYS[1]) / "status.json").unlink()
    shutil.rmtree(store.run(KEYS[2]).path)
    (store.run(KEYS[3]) / "environment.json").write_text("[")
    facts = store.facts(KEYS)
    assert facts == from_folders(store)
    assert [facts[key].status["state"] for key in KEYS[:4]] == ["done", "missing", "missing", "damaged"]
    assert facts[KEYS[0]].status["last"] == {"top1": 1.0}


def test_a_change_that_keeps_size_and_time_is_seen(store: Store) -> None:
    status = store.run(KEYS[0]) / "status.json"
    store.facts(KEYS)
    before = status.stat()
    status.write_text(status.read_text().replace("70.0", "80.0"))
    os.utime(status, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.facts(KEYS)[KEYS[0]].status["state"] == "damaged"


def test_what_was_written_just_now_is_not_trusted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change within a tick of the file system's clock would not show in its times."""
    monkeypatch.setattr(index, "SETTLED", 10**12)
    assert store.facts(KEYS) == from_folders(store)
    assert not (store.root / "index.sqlite").exists()


def test_exchanged_folders_are_seen(store: Store) -> None:
    store.facts(KEYS)
    one, two = (store.run(key).path for key in KEYS[:2])
    one.rename(store.root / "swap")
    two.rename(one)
    (store.root / "swap").rename(two)
    assert [store.facts(KEYS)[key].status["state"] for key in KEYS[:3]] == ["damaged", "damaged", "done"]


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_index_says_nothing_wrong(store: Store, seed: int) -> None:
    expected, file, random_ = from_folders(store), store.root / "index.sqlite", random.Random(seed)
    store.facts(KEYS)
    whole = file.read_bytes()
    for _ in range(20):
        content = bytearray(whole)
        for place in random_.sample(range(len(content)), 1 + 50 * random_.randrange(2)):
            content[place] ^= 1 << random_.randrange(8)
        if random_.random() < 0.3:
            del content[random_.randrange(len(content)) :]
        file.write_bytes(content)
        assert store.facts(KEYS) == expected
    for content in (b"", b"no database", whole[:100], b"SQLite format 3\0" + bytes(200)):
        file.write_bytes(content)
        for _ in range(3):
            assert store.facts(KEYS) == expected


def test_an_entry_that_was_changed_is_not_taken(store: Store) -> None:
    expected = from_folders(store)
    store.facts(KEYS)
    with closing(sqlite3.connect(store.root / "index.sqlite")) as database:
        database.execute("UPDATE runs1 SET status = replace(status, '70.0', '99.0')")
        database.commit()
    assert store.facts(KEYS) == expected


def test_an_index_of_another_form_is_no_obstacle(store: Store) -> None:
    with closing(sqlite3.connect(store.root / "index.sqlite")) as database:
        database.execute(f"CREATE TABLE {index._TABLE} (something)")
        database.commit()
    for _ in range(2):
        assert store.facts(KEYS) == from_folders(store)
    assert len(index.Index(store.root / "index.sqlite").read(KEYS)) == COUNT + 1, "it was made anew"


def test_all_goes_on_without_an_index(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = from_folders(store)
    monkeypatch.setattr(index, "_WAIT", 0.1)
    store.facts(KEYS[:3])
    with closing(sqlite3.connect(store.root / "index.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")  # a process that writes and hangs
        assert store.facts(KEYS) == expected
    (store.root / "index.sqlite").unlink()
    (store.root / "index.sqlite").mkdir()
    assert store.facts(KEYS) == expected


def test_what_cannot_be_looked_at_is_left_to_the_folders(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = from_folders(store)
    store.facts(KEYS)

    def failing(*_: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr(index.os, "stat", failing)
        assert index.stamp(store.run(KEYS[0]).path, ("status.json",)) == ""
    assert store.facts(KEYS) == expected


USE = """
import json, sys
from pathlib import Path
from benchmarks.store import index
from benchmarks.store.runs import Store

index.SETTLED = 2 * 10**7
store, keys = Store(Path(sys.argv[1])), json.loads(sys.argv[2])
sys.stdin.readline()
for _ in range(5):
    found = store.facts(keys)
    print(json.dumps({key: facts for key, facts in found.items()}), flush=True)
"""


def test_several_processes_share_an_index(store: Store) -> None:
    expected = json.loads(json.dumps(from_folders(store)))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", USE, str(store.root), json.dumps(KEYS)], cwd=REPO, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in started:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in started:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert [json.loads(line) for line in out.splitlines()] == [expected] * 5
