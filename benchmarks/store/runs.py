"""The store: a run directory per cell, named by the cell's key. Imports no torch."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kd_methods.errors import UserError

from ..common.files import PARTIAL, read_json, write_bytes, write_json
from .cell import Cell


def today() -> str:
    """The date that results carry (UTC)."""
    return datetime.now(UTC).date().isoformat()


FINAL = ("done", "diverged", "refused")
"""States of a run that has ended for good."""


class Run:
    """The directory of one cell.

    cell.json         the cell's identity and label
    environment.json  versions, hardware, commit and date of every process that worked on it, with its first epoch
    status.json       state (running, interrupted, done, diverged, failed; refused: not for this pair), message, epoch
    metrics.json      one record per epoch: accuracy, losses, seconds, learning rate
    checkpoint.pt     everything that training needs to go on to the same bits
    student.pt        the deployed network as a plain state dict
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def status(self) -> dict[str, Any]:
        return read_json(self / "status.json") or {"state": "missing"}

    @property
    def state(self) -> str:
        return self.status["state"]

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to compute."""
        return self.state in FINAL

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_json(self / "metrics.json") or []

    @property
    def environments(self) -> list[dict[str, Any]]:
        return read_json(self / "environment.json") or []

    def set_status(self, state: str, **facts: Any) -> None:
        write_json(self / "status.json", {"state": state, **facts})

    def add_environment(self, facts: dict[str, Any], epoch: int) -> None:
        """Record what computes this run from ``epoch`` on, with the date."""
        earlier = [part for part in self.environments if part["from_epoch"] < epoch]
        write_json(self / "environment.json", [*earlier, {**facts, "date": today(), "from_epoch": epoch}])

    def set_metrics(self, records: list[dict[str, Any]]) -> None:
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
                yield False
            else:
                for left in self.path.glob(f".*{PARTIAL}"):  # of a process that was killed while it wrote
                    left.unlink(missing_ok=True)
                yield True
        finally:
            os.close(handle)


class Store:
    """All runs below one output folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, cell: Cell | str) -> Run:
        """The run of a cell, or of a key; its directory need not exist yet."""
        key = cell if isinstance(cell, str) else cell.key
        return Run(self.root / "runs" / key[:16])

    def create(self, cell: Cell) -> Run:
        """The run of a cell, with its identity written down."""
        run = self.run(cell)
        recorded = read_json(run / "cell.json")
        if recorded is None:
            write_json(run / "cell.json", {"key": cell.key, "label": cell.label, "cell": cell.identity()})
        elif recorded["key"] != cell.key:
            raise UserError(f"{run.path} belongs to another cell ({recorded['label']}); move that folder away")
        return run

    @property
    def prepared(self) -> Path:
        """Where what methods compute once from a teacher is kept."""
        return self.root / "prepared"

    def check_writable(self) -> None:
        """Raise UserError if nothing can be written here."""
        probe = self.root / ".writable"
        write_bytes(probe, b"")
        probe.unlink()

    def cost(self, key: str) -> Path:
        """Where the cost figures with this key are kept."""
        return self.root / "costs" / f"{key[:16]}.json"
