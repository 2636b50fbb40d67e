"""The store's index: what the small documents of all runs say, in one SQLite file, so that 10,000 runs are known soon.

The folders stay the truth. An entry counts as long as the files that it was read from are the same ones; the others are
read again. The index may be deleted at any time, several processes share it, and where it cannot be read or written, or
is damaged, all goes on without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_TABLE = "runs1"  # with the version of its form

SETTLED = 2 * 10**9
"""Nanoseconds after which a file that changes has other times; clocks of file systems are coarse, and may differ."""

_BATCH = 500
_WAIT = 2.0  # seconds for another process


class IndexedRun(NamedTuple):
    """A run's status and environments as JSON texts; ``stamp`` says from which files they were read."""

    stamp: str
    status: str
    environments: str

    def seal(self, key: str) -> str:
        """By which a damaged entry is known."""
        return hashlib.sha256("\0".join((key, *self)).encode()).hexdigest()


def stamp(folder: Path, names: Sequence[str]) -> str:
    """What changes when one of the files does; empty where that cannot be said.

    That is where a file cannot be looked at, or has changed so lately that another change might not show.
    """
    stamps, latest = [], 0
    start = f"{folder}{os.sep}"
    for name in names:
        try:
            stat = os.stat(start + name)  # noqa: PTH116 (of 30,000 files)
        except (FileNotFoundError, NotADirectoryError):
            stamps.append("-")
            continue
        except OSError:
            return ""
        stamps.append(f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")
        latest = max(latest, stat.st_mtime_ns, stat.st_ctime_ns)
    return ";".join(stamps) if time.time_ns() - latest > SETTLED else ""


class Index:
    """The entries of runs by key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, keys: Iterable[str]) -> dict[str, IndexedRun]:
        """The entries that are there and whole."""
        wanted, entries = list(keys), dict[str, IndexedRun]()

        def select(database: sqlite3.Connection) -> None:
            for start in range(0, len(wanted), _BATCH):
                batch = wanted[start : start + _BATCH]
                marks = ", ".join("?" * len(batch))
                for key, seal, *fields in database.execute(f"SELECT * FROM {_TABLE} WHERE key IN ({marks})", batch):
                    with contextlib.suppress(TypeError, UnicodeError):  # of a damaged file anything may come
                        entry = IndexedRun(*fields)
                        if entry.seal(key) == seal:
                            entries[key] = entry

        if self.path.is_file():
            self._use(select)
        return entries

    def write(self, entries: Mapping[str, IndexedRun]) -> None:
        """Add or replace entries."""
        rows = [(key, entry.seal(key), *entry) for key, entry in entries.items()]
        fields = ", ".join(f"{name} TEXT" for name in ("seal", *IndexedRun._fields))

        def insert(database: sqlite3.Connection) -> None:
            database.execute(f"CREATE TABLE IF NOT EXISTS {_TABLE} (key TEXT PRIMARY KEY, {fields})")
            database.executemany(f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?, ?)", rows)
            database.commit()

        self._use(insert)

    def _use(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do something with the database, if it can be done."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=_WAIT)) as database:
                # Nothing is lost with it: no time is spent on surviving a crash, nor a second file.
                database.execute("PRAGMA journal_mode = MEMORY")
                database.execute("PRAGMA synchronous = OFF")
                work(database)
        except (sqlite3.Error, UnicodeError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
            if not isinstance(error, sqlite3.OperationalError) or code == sqlite3.SQLITE_ERROR:
                # Damaged, or of another form: begun anew. Else another process has it, or it cannot be written here.
                with contextlib.suppress(OSError):
                    self.path.unlink(missing_ok=True)
