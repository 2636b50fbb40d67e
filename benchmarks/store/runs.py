"""The store: a run directory per cell, named by the cell's key. Imports no torch."""

from __future__ import annotations

import fcntl
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from kd_methods.errors import Damaged, UserError

from ..common.console import say
from ..common.events import EpochRecord
from ..common.files import (
    PARTIAL,
    NoFile,
    check_archive,
    read_bytes,
    set_aside,
    sha256_file,
    unlockable,
    write_bytes,
    write_json,
)
from . import documents
from .cell import Cell
from .index import Index, IndexedRun, stamp


def today() -> str:
    """The date that results carry (UTC)."""
    return datetime.now(UTC).date().isoformat()


FINAL = ("done", "diverged", "refused")
"""States of a run that has ended for good."""

GOING_ON = ("running", "interrupted", "failed")
"""States of a run that goes on from what it saved."""

_LOST_WITH: Mapping[str, Sequence[str]] = {
    # Without it nobody knows what computed the epochs before: they are computed again.
    "environment.json": ("checkpoint.pt", "mmengine", "environment.json", "status.json"),
    # The checkpoint has all that is in these.
    "metrics.json": ("metrics.json", "status.json"),
    "student.pt": ("student.pt", "status.json"),
}
"""What is set aside with a file of a run that is damaged; a run without a status is one that goes on."""

_SHAPES: Mapping[str, Any] = {
    "environment.json": list[documents.Environment],
    "metrics.json": list[EpochRecord],
}

_FILES = ("checkpoint.pt", "mmengine", "student.pt", "metrics.json", "environment.json", "status.json", "cell.json")
"""All files of a run; cell.json is last, so that a kill while they are set aside leaves what says whose run it is."""

RESULT = ("cell.json", "environment.json", "metrics.json", "student.pt", "status.json")
"""What a run that has ended is handed on with, in the order in which it is written: without a status nothing counts."""

BEGUN = ("cell.json", "environment.json", "metrics.json", "checkpoint.pt", "status.json")
"""What a run that has not ended is handed on with, so that it goes on elsewhere."""

Say = Callable[[str], None]


def figures(records: Sequence[EpochRecord]) -> dict[str, dict[str, float]]:
    """The metrics of the ``last`` of a run's epochs, and each at its ``best`` in the training proper."""
    last = records[-1]["metrics"]
    proper = [record["metrics"] for record in records if not record.get("phase")]
    # Average precision of a size without objects is there in epochs in which a detector finds nothing, and only then.
    return {"last": last, "best": {name: max(metrics.get(name, 0.0) for metrics in proper) for name in last}}


class Facts(NamedTuple):
    """What the small documents say of a run: its status, and, where it is done, what computed it.

    Besides those that are written, the status may have the states "missing" and "damaged"; of the latter the message
    says which file is damaged and how.
    """

    status: dict[str, Any]
    environments: list[documents.Environment]


OTHER_BITS = "so it ends in other bits than a run without this change"
"""What is said where a run goes on and something that bits depend on has changed."""


class Run:
    """The directory of one cell.

    cell.json         the cell's identity and label
    environment.json  versions, hardware, arithmetic, commit and date of every process that worked on it
    status.json       state (running, interrupted, done, diverged, failed; refused: not for this pair), message, epoch;
                      of a run that is done the digests of the files below and above
    metrics.json      one record per epoch: accuracy, losses, seconds, learning rate
    checkpoint.pt     everything that training needs to go on to the same bits
    student.pt        the deployed network as a plain state dict

    ``key``: the cell's, where it is known; what belongs to another one is damaged.
    """

    def __init__(self, path: Path, key: str = "") -> None:
        self.path, self.key = path, key

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def facts(self) -> Facts:
        """What is known of the run without a look at its weights."""
        try:
            status = self._status()
            if status["state"] != "done":
                return Facts(status, [])
            return Facts(status, self._check("environment.json", status) or [])
        except Damaged as error:
            return Facts({"state": "damaged", "message": str(error)}, [])

    def _status(self) -> dict[str, Any]:
        status = documents.read(self / "status.json", documents.Status)
        if status is None:
            return {"state": "missing"}
        key = status.get("key") or (documents.read(self / "cell.json", documents.Identity) or {}).get("key", "")
        if self.key and key and key != self.key:
            raise Damaged(f"{self.path} has the results of another cell ({key[:16]}); {documents.REMEDY}")
        return status

    def _check(self, name: str, status: Mapping[str, Any]) -> Any:
        """Raise Damaged if a file is not what it was when the run was done; returns what a document holds."""
        path, known = self / name, status.get("files", {}).get(name)
        remedy = documents.REMEDY if name == "environment.json" else documents.MEND
        try:
            if known and sha256_file(path) != known:
                raise Damaged(f"{path} is damaged (it is not what was written); {remedy}")
            if name in _SHAPES:
                return documents.read(path, _SHAPES[name], remedy)
            if not known:
                check_archive(read_bytes(path), path)
        except NoFile:
            what = documents.NO_NETWORK if name == "student.pt" else remedy
            raise Damaged(f"{path} is missing; {what}") from None

    @property
    def status(self) -> dict[str, Any]:
        return self.facts().status

    @property
    def state(self) -> str:
        return self.status["state"]

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to compute."""
        return self.state in FINAL

    @property
    def handed_on(self) -> tuple[str, ...]:
        """The files that go with this run to another store."""
        return RESULT if self.ended else BEGUN

    @property
    def portable(self) -> bool:
        """Whether a run that has not ended can go on in another store; what mmengine saves cannot."""
        return self.state in GOING_ON and (self / "checkpoint.pt").is_file()

    @property
    def saved(self) -> Sequence[EpochRecord]:
        """The whole epochs from which a run that has begun goes on, those of first phases among them."""
        saved = any((self / name).exists() for name in ("checkpoint.pt", "mmengine"))
        if not saved or self.state not in GOING_ON:
            return ()
        try:
            return self.metrics
        except Damaged:
            return ()

    @property
    def saved_epochs(self) -> int:
        """How many of them are of the training proper."""
        return sum(not record.get("phase") for record in self.saved)

    def damage(self, name: str) -> str:
        """What is wrong with a file of a run that is done; empty where nothing is, and for other runs."""
        status = self.status
        try:
            if status["state"] == "done":
                self._check(name, status)
        except Damaged as error:
            return str(error)
        return ""

    @property
    def metrics(self) -> list[EpochRecord]:
        """The records of the epochs.

        Raises:
            Damaged: they are not what was written.
        """
        if damage := self.damage("metrics.json"):
            raise Damaged(damage)
        return documents.read(self / "metrics.json", _SHAPES["metrics.json"]) or []

    @property
    def environments(self) -> list[documents.Environment]:
        """What computed the run, in the order of epochs.

        Raises:
            Damaged: the document is.
        """
        return documents.read(self / "environment.json", _SHAPES["environment.json"]) or []

    def student(self, mend: bool = False) -> Path:
        """The file of the deployed network of a run that is done.

        Args:
            mend: for who trains: where the file is no good, a run that no process holds is one that goes on.

        Raises:
            Damaged: it is missing, or not what was written.
        """
        if damage := self.damage("student.pt"):
            if mend:
                self.mend_unheld()
            raise Damaged(damage)
        return self / "student.pt"

    def set_status(self, state: str, **facts: Any) -> None:
        """Write the status; of a run that is done with the digests of its files, which are written before."""
        if self.key:
            facts["key"] = self.key
        if state == "done":
            facts["files"] = {name: sha256_file(self / name) for name in _LOST_WITH if (self / name).is_file()}
        documents.write(self / "status.json", {"state": state, **facts})

    def add_environment(self, facts: dict[str, Any], epoch: int, step: int = 0) -> str:
        """Record what computes this run from a step of an epoch on, with the date.

        Returns:
            What of it changes the bits against what computed the run before, in words; empty where nothing does.
        """
        earlier = [known for known in self.environments if documents.begin(known) < (epoch, step)]
        now: Any = {**facts, "date": today(), "from_epoch": epoch, "from_step": step}
        write_json(self / "environment.json", [*earlier, now])
        return documents.change(earlier[-1], now) if earlier else ""

    @property
    def changes(self) -> list[str]:
        """What of the bits depend on changed while this run was computed, in words."""
        return [
            text for before, now in itertools.pairwise(self.environments) if (text := documents.change(before, now))
        ]

    def set_metrics(self, records: Sequence[EpochRecord]) -> None:
        write_json(self / "metrics.json", records)

    def write(self, name: str, content: bytes) -> None:
        write_bytes(self / name, content)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the run for this process; yields False if another process holds it.

        The operating system drops the lock when its holder ends, however it ends.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self / ".lock", os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; choose another folder with --output"
            ) from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                mine = False
            except OSError as error:
                raise unlockable(self.path, error) from None
            else:
                mine = True
            if mine:
                for left in self.path.glob(f".*{PARTIAL}"):  # of a process that was killed while it wrote
                    left.unlink(missing_ok=True)
            yield mine
        finally:
            os.close(handle)

    def take(self, other: Run, say: Say) -> None:
        """Become a copy of another run that is further, for the process that holds this one, which has not ended.

        What was begun here is kept beside it.
        """
        if any((self / name).exists() for name in _FILES):
            further = "has ended" if other.ended else "is further"
            self.set_aside(_FILES, f"{self.path} was begun here and {further} elsewhere", say, "begun")
        for name in other.handed_on:
            if (other / name).is_file():
                self.write(name, read_bytes(other / name))

    def mend(self, say: Say = lambda line: None) -> None:
        """Set aside what is damaged, so that it is computed again; for the process that holds the run."""
        status: dict[str, Any] = {}
        try:
            status = self._status()
        except Damaged as error:
            self.set_aside(["status.json"], documents.reason(error), say)
        for name, lost in _LOST_WITH.items():
            try:
                if status.get("state") == "done" or (name in _SHAPES and (self / name).exists()):
                    self._check(name, status)
            except Damaged as error:
                self.set_aside(lost, documents.reason(error), say)

    def mend_unheld(self, say: Say = lambda line: None) -> None:
        """:meth:`mend`, unless a process holds the run."""
        with self.lock() as mine:
            if mine:
                self.mend(say)

    def set_aside(self, names: Sequence[str], reason: str, say: Say, why: str = "damaged") -> None:
        """Rename those of the files that there are, for the process that holds the run; ``say`` gets the reason."""
        names_aside = [set_aside(self / name, why).name for name in names if (self / name).exists()]
        say(f"{reason}; kept as {', '.join(names_aside)}" if names_aside else reason)


class Store:
    """All runs below one output folder."""

    def __init__(self, root: Path) -> None:
        self.root, self._runs = root, root / "runs"

    def run(self, cell: Cell | str) -> Run:
        """The run of a cell, or of a key; its directory need not exist yet."""
        key = cell if isinstance(cell, str) else cell.key
        return Run(self._runs / key[:16], key)

    def create(self, cell: Cell, say: Say = say) -> Run:
        """The run of a cell, for the process that holds it: with its identity written down, and nothing in it damaged.

        What is, and what belongs to another cell, is set aside, and that is said.
        """
        run = self.run(cell)
        recorded = None
        try:
            recorded = documents.read(run / "cell.json", documents.Identity)
        except Damaged as error:
            run.set_aside(["cell.json"], documents.reason(error), say)
        if recorded and recorded["key"] != cell.key:
            run.set_aside(_FILES, f"{run.path} belongs to another cell ({recorded['label']})", say)
            recorded = None
        run.mend(say)
        if recorded is None:
            write_json(run / "cell.json", {"key": cell.key, "label": cell.label, "cell": cell.identity()})
        return run

    def facts(self, keys: Iterable[str]) -> dict[str, Facts]:
        """What is known of many runs, by key: through the index, as long as their documents are the same."""
        index, facts, new = Index(self.root / "index.sqlite"), dict[str, Facts](), dict[str, IndexedRun]()
        wanted = list(dict.fromkeys(keys))
        entries = index.read(wanted)
        parsed = functools.cache(json.loads)  # most runs have one environment
        for key in wanted:
            run, entry = self.run(key), entries.get(key)
            stamped = stamp(run.path, ("cell.json", "environment.json", "status.json"))
            if entry and stamped and entry.stamp == stamped:
                facts[key] = Facts(json.loads(entry.status), parsed(entry.environments))
                continue
            facts[key] = run.facts()
            if stamped and facts[key].status["state"] not in ("missing", "damaged"):
                new[key] = IndexedRun(stamped, *map(json.dumps, facts[key]))
        if new:
            index.write(new)
        return facts

    def metrics(self, key: str, say: Say) -> list[EpochRecord]:
        """The records of a run's epochs; none where they are damaged, which is said."""
        try:
            return self.run(key).metrics
        except Damaged as error:
            say(str(error))
            return []

    @property
    def prepared(self) -> Path:
        """Where what methods compute once from a teacher is kept."""
        return self.root / "prepared"

    def check_writable(self) -> None:
        """Raise UserError if nothing can be written here."""
        trial = self.root / ".writable"
        write_bytes(trial, b"")
        trial.unlink(missing_ok=True)  # of another process that tries at the same time

    def cost(self, key: str) -> Path:
        """Where the cost figures with this key are kept."""
        return self.root / "costs" / f"{key[:16]}.json"
