"""Runs of a store, and whether they are whole: what they say, and what their epochs say. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from kd_methods.errors import Damaged, UserError

from . import documents, names
from .cell import Cell
from .runs import FINAL, Run, Say, figures

STUDENT = "student.pt"


class EndedRun(NamedTuple):
    """A run that has ended and is whole."""

    run: Run
    label: str
    status: dict[str, Any]


class Unfinished(Damaged):
    """The run has not ended."""

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run


def checked(run: Run) -> EndedRun:
    """A run that has ended, whose documents agree with each other and with its key.

    Raises:
        Unfinished: it has not ended.
        Damaged: a document is missing or is not what was written, or the run claims what its epochs do not say.
    """
    identity = documents.read(run / "cell.json", documents.WholeIdentity, documents.MEND)
    if identity is None or identity["key"][:16] != run.path.name:
        raise Damaged(f"{run / 'cell.json'} is missing, or another cell's; {documents.MEND}")
    run, label = Run(run.path, identity["key"]), identity["label"]
    status = run.status
    if status["state"] == "damaged":
        raise Damaged(status["message"])
    if status["state"] not in FINAL:
        raise Unfinished(f"{run.path} ({label}): {status.get('message', status['state'])}", run)
    if status["state"] == "done":
        if (run / STUDENT).is_file() and (damage := run.damage(STUDENT)):
            raise Damaged(damage)
        records = run.metrics
        if all(record.get("phase") for record in records) or text(
            {rule: status[rule] for rule in ("last", "best")}
        ) != text(figures(records)):
            raise Damaged(f"{run.path} ({label}): its status has other results than its epochs; {documents.MEND}")
    return EndedRun(run, label, status)


def check(run: Run) -> None:
    """Raise Damaged where a run of an archive has neither ended nor can go on, or a document of it is damaged."""
    try:
        checked(run)
        _check_cell(run)
    except Unfinished as unfinished:
        _check_cell(run)
        begun = unfinished.run
        if not begun.portable:
            raise
        if not begun.environments:
            raise Damaged(f"{begun / 'environment.json'} is missing; {documents.REMEDY}") from None
        _ = begun.metrics  # raises Damaged, too


def _check_cell(run: Run) -> None:
    """Raise Damaged where this version has no such cell."""
    path = run / "cell.json"
    try:
        Cell.of(documents.read(path, documents.WholeIdentity)["cell"])
    except Damaged as error:
        raise Damaged(f"{path}: {error}") from None


class WholeRuns(NamedTuple):
    """The runs of a store by key: those that have ended, why others have not, and those that are damaged."""

    ended: list[EndedRun]
    begun: list[Unfinished]
    damaged: list[Run]


def whole(root: Path, say: Say) -> WholeRuns:
    """The runs of a store; ``say`` gets a line for each that is damaged.

    Raises:
        UserError: there is no store.
    """
    runs = WholeRuns([], [], [])
    for run in filter(_says_something, runs_of(root)):
        try:
            runs.ended.append(checked(run))
        except Unfinished as unfinished:
            runs.begun.append(unfinished)
        except Damaged as error:
            say(f"not taken: {error}")
            runs.damaged.append(run)
    return runs


class Mended(NamedTuple):
    """Of a store's runs how many there are, and the names of their folders: damaged ones that go on, those in use."""

    runs: int
    mended: list[str]
    busy: list[str]


def mend(root: Path, say: Say) -> Mended:
    """Set aside what is damaged in a store's runs, so that the next run of their tables computes it again.

    Raises:
        UserError: there is no store, or it cannot be written.
    """
    every, mended, busy = list(filter(_says_something, runs_of(root))), list[str](), list[str]()
    for run in every:
        try:
            checked(run)
        except Unfinished:
            continue  # it is computed anyway
        except Damaged:
            with run.lock() as mine:
                if mine:
                    _mend(run, say)
                (mended if mine else busy).append(run.path.name)
    return Mended(len(every), mended, busy)


def _mend(run: Run, say: Say) -> None:
    """For the process that holds the run."""
    run.mend(say)
    try:
        checked(run)
    except Unfinished:
        pass
    except Damaged as error:  # whose run it is cannot be said, or its results are not those of its epochs
        run.set_aside(["cell.json", "metrics.json", "status.json"], documents.reason(error), say)


def ended(root: Path, say: Say) -> list[EndedRun]:
    """As :func:`whole`, those that have ended; ``say`` gets a line for each of the others, too."""
    runs = whole(root, say)
    for unfinished in runs.begun:
        say(f"not taken: {unfinished}")
    return runs.ended


def finished(root: Path, start: str) -> EndedRun:
    """The one run of a store whose key begins so, or of that name, which has to be done and to have its network.

    Raises:
        UserError: there is none, or it is not done or without its network.
    """
    one = named(root, start)
    if one.status["state"] != "done" or not (one.run / STUDENT).is_file():
        why = one.status["state"]
        if why == "done":
            why += " and came without it; `import` takes it from an archive that `export --students` wrote"
        raise UserError(f"run {start} ({one.label}) has no network: it is {why}")
    return one


def runs_of(root: Path) -> list[Run]:
    """The folders of a store's runs.

    Raises:
        UserError: there is no store.
    """
    if not (root / "runs").is_dir():
        raise UserError(f"there is no store in {root}: it has no folder runs")
    return [Run(path) for path in sorted((root / "runs").iterdir()) if path.is_dir()]


def _says_something(run: Run) -> bool:
    """Whether there is a run in a folder: one in which everything was set aside, or nothing written yet, has none."""
    return any((run / name).exists() for name in ("cell.json", "status.json"))


def named(output: Path, start: str) -> EndedRun:
    """The one run whose key begins so, or that has this name in a table (:mod:`.names`)."""
    begin = names.key_of(output, start) or start
    folders = [run for run in runs_of(output) if run.path.name.startswith(begin[:16])]
    if len(begin) > 16:
        folders = [run for run in folders if _key(run, begin).startswith(begin)]
    if len(folders) != 1:
        count = "several begin" if folders else "none begins"
        raise UserError(
            f"no run '{start}' in {output}: {count} so; give more of the name of its folder in runs/, or its "
            "TABLE/ROW/PAIR/sSEED as TABLE-runs.csv has it"
        )
    return checked(folders[0])


def _key(run: Run, otherwise: str) -> str:
    """Of its cell; where it is not readable, that is for :func:`checked` to say."""
    try:
        return (documents.read(run / "cell.json", documents.Identity) or {}).get("key", otherwise)
    except Damaged:
        return otherwise


def text(value: Any) -> str:
    """A value as text, to be compared: values that are no number are equal in it."""
    return json.dumps(value, sort_keys=True)
