"""Runs from one store into another: packed, checked, merged. Imports no torch.

A result keeps its provenance: the documents of a run go from store to store as they were written.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from kd_methods.errors import Damaged, UserError, unknown

from ..common.console import counted, say
from ..common.files import read_bytes, sha256_file, write_bytes
from . import archives, documents, manifest
from .archives import REMEDY
from .manifest.shapes import Manifest
from .runs import BEGUN, FINAL, RESULT, Run, Store
from .whole_runs import STUDENT, EndedRun, Unfinished, check, checked, ended, named, runs_of, text, whole

Say = Callable[[str], None]
Also = Literal["students", "unfinished"]

_KEY = re.compile("[0-9a-f]{64}")
_NAME = re.compile(archives.NAME)


@dataclass(frozen=True)
class Exported:
    """What an archive got: its sha256, how many runs, so many of them with their student; how many have no result.

    ``begun``: how many runs are in it that have not ended.
    """

    sha256: str
    runs: int
    students: int
    left_out: int
    begun: int = 0


OTHER_TEACHER = "its teacher has other weights here"


@dataclass(frozen=True)
class Merged:
    """What came of a merge: labels of runs that are new here, and of those that have another result here.

    ``same``: how many were here before, with the same result; ``students``: how many of these got their network;
    ``busy``: labels of those that another process is computing here; ``tables``: folders of tables that show more now;
    ``begun``: labels of those that have not ended and go on here; ``trained_otherwise``: keys of those whose networks
    have other weights here, or are being trained.
    """

    added: tuple[str, ...] = ()
    same: int = 0
    students: int = 0
    conflicts: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    begun: tuple[str, ...] = ()
    trained_otherwise: frozenset[str] = frozenset()

    @property
    def missing(self) -> str:
        """What was not taken, in words; empty where all was."""
        reasons = []
        if self.conflicts:
            reasons.append(f"{counted(len(self.conflicts), 'run')} with another result or teacher here, which stays: ")
            reasons[-1] += "; ".join(self.conflicts)
        if self.busy:
            reasons.append(f"{counted(len(self.busy), 'run')} being computed here: {', '.join(self.busy)}")
        return "; ".join(reasons)


def export(
    output: Path | str, file: Path | str, tables: Sequence[str] = (), runs: Sequence[str] = (),
    also: Collection[Also] = (), say: Say = say,
) -> Exported:  # fmt: skip
    """Pack the ended runs of tables, and single ones, with their teachers, costs and what tables show of them.

    Args:
        output: the store's folder.
        file: the archive to write.
        tables: folders of tables in it, such as ``table1-short``.
        runs: keys of runs, or the beginnings of keys.
        also: ``students``: the deployed networks' weights; ``unfinished``: runs that were stopped, with the
            checkpoints from which they go on elsewhere.
        say: called with a line for what is left out, and why.

    Raises:
        Damaged: a table's manifest is one that no store takes.
        UserError: no such table or run, or none of them has ended.
    """
    if odd := set(also) - set(get_args(Also)):
        raise unknown("part of an archive", min(odd), get_args(Also))
    output, file = Path(output), Path(file)
    store, members = Store(output), dict[str, Path]()
    students, unfinished = "students" in also, "unfinished" in also
    keys, teach = [_named_key(output, start, unfinished) for start in runs], set[str]()
    for table_folder in tables:
        shown = manifest.existing(output, table_folder)
        _check_manifest(shown, table_folder)
        keys += _keys(shown)
        teach |= {column.teacher.cell for column in shown.columns}
        members[f"tables/{table_folder}/plan.json"] = manifest.path(output, table_folder)
        for path in (path for cost in shown.costs if (path := store.cost(cost.key)).is_file()):
            if _is_whole(partial(documents.read, path, dict[str, Any]), say):
                members[f"costs/{path.name}"] = path
    states = {key: state for key, (state, _) in store.facts(keys).items()}
    for status in (facts.status for facts in store.facts([*states, *filter(None, teach)]).values()):
        if status["state"] == "damaged":
            say(f"left out: {status['message']}")
    final = [key for key, status in states.items() if status["state"] in FINAL]
    with ExitStack() as held:
        going_on = [store.run(key) for key in states if unfinished and key not in final]
        begun = [run for run in going_on if _held(run, held, say)]
        for run in begun:
            members |= _files(run, BEGUN)
        teach |= {_teacher(run) for run in begun} | (set(map(_teacher, map(store.run, final))) if runs else set())
        # With their weights: whoever adds a row or a seed goes on with the same teachers.
        teachers = [key for key in sorted(teach) if key and store.run(key).ended]
        packed = with_student = 0
        for key in dict.fromkeys([*final, *teachers]):
            run = store.run(key)
            if not _is_whole(partial(checked, run), say):
                continue
            packed += 1
            with_weights = students or key in teachers
            with_student += with_weights and (run / STUDENT).is_file()
            members |= _files(run, [name for name in RESULT if name != STUDENT or with_weights])
        if not packed and not begun:
            raise UserError(f"nothing to export: none of these runs has ended in {output}; run them first")
        archives.write(file, members)
    left_out = len(set(states) | set(teachers)) - packed - len(begun)
    return Exported(sha256_file(file), packed, with_student, left_out, len(begun))


def _files(run: Run, names: Iterable[str]) -> dict[str, Path]:
    """Those of a run's files that there are, by their names in an archive."""
    return {f"runs/{run.path.name}/{name}": run / name for name in names if (run / name).is_file()}


def _held(run: Run, held: ExitStack, say: Say) -> bool:
    """Whether a run can go on elsewhere; no process computes it then until ``held`` closes."""
    if not run.portable:
        return False
    if not held.enter_context(run.lock()):
        say(f"left out: {run.path} is being computed; stop it first")
        return False
    return _is_whole(partial(check, run), say)


def _is_whole(look: Callable[[], object], say: Say) -> bool:
    """Whether looking at it finds no damage; ``say`` gets a line on what it is left out for."""
    try:
        look()
    except Damaged as error:
        say(f"left out: {error}")
        return False
    return True


def import_(file: Path | str, output: Path | str, say: Say = say) -> Merged:
    """Merge an archive that :func:`export` wrote into a store.

    Its runs that have not ended are taken where they are not as far here.

    Raises:
        Damaged: it is not what was written; nothing is taken.
        UserError: no such file, or the store cannot be written.
    """
    output = Path(output)
    Store(output).check_writable()
    with opened(Path(file), output) as folder:
        theirs = whole(folder, say)
        return _go_on(theirs.begun, output, _merge(theirs.ended, folder, output, say), say)


def _go_on(begun: Sequence[Unfinished], output: Path, merged: Merged, say: Say) -> Merged:
    """What came of a merge, once runs that have not ended are taken, too."""
    taken, busy, same, conflicts = list[str](), list(merged.busy), merged.same, list(merged.conflicts)
    for their in (unfinished.run for unfinished in begun):
        run, label = Store(output).run(their.key), _label(their)
        if _teacher(their) in merged.trained_otherwise and not run.ended:
            conflicts.append(f"{label} ({OTHER_TEACHER})")
            continue
        with run.lock() as mine:
            if run.ended or (run.portable and len(run.saved) >= len(their.saved)):
                same += 1
            elif mine:
                run.take(their, say)
                taken.append(label)
            else:
                busy.append(label)
    return replace(merged, begun=tuple(taken), busy=tuple(busy), same=same, conflicts=tuple(conflicts))


@contextmanager
def opened(file: Path, beside: Path | None = None) -> Iterator[Path]:
    """An archive as a store of its own, in which every run and manifest is whole; it is gone afterwards.

    Raises:
        Damaged: something in it is not what was written.
    """
    with archives.unpacked(file, beside) as folder:
        try:
            for run in runs_of(folder):
                check(run)
            for table_folder in manifest.table_folders(folder):
                _check_manifest(manifest.existing(folder, table_folder), table_folder)
            for path in (folder / "costs").glob("*.json"):
                documents.read(path, dict[str, Any])
        except Damaged as error:
            reason = documents.reason(error).replace(f"{folder}/", "")
            raise Damaged(f"{file}: {reason}; {REMEDY}") from None
        yield folder


def merge(source: Path | str, output: Path | str, say: Say = say) -> Merged:
    """Take into a store what another one has and it has not: ended runs, costs, and what tables show.

    Where both have a run with other results, the one of ``output`` stays, and the other is named and not kept. What
    tables show is joined; where that cannot be, theirs of ``output`` stay as well.

    Raises:
        UserError: there is no store in ``source``, or ``output`` cannot be written.
    """
    source = Path(source)
    return _merge(ended(source, say), source, Path(output), say)


def _merge(runs: Sequence[EndedRun], source: Path, output: Path, say: Say) -> Merged:
    """Take some runs of another store, its costs, and what its tables show."""
    store = Store(output)
    facts = store.facts(their.run.key for their in runs)
    added, same, students, conflicts, busy = list[str](), 0, 0, list[str](), list[str]()
    taught_by = {their.run.key: _teacher(their.run) for their in runs}
    teachers, trained_otherwise = set(taught_by.values()), set[str]()
    for their in sorted(runs, key=lambda their: their.run.key not in teachers):
        run, ours = store.run(their.run.key), facts[their.run.key].status
        if ours["state"] not in FINAL and taught_by[their.run.key] in trained_otherwise:
            conflicts.append(f"{their.label} ({OTHER_TEACHER})")
            continue
        with run.lock() as mine:
            if mine and ours["state"] not in FINAL:
                ours = run.status  # it may have ended since the facts were read
            if _weights(ours) != _weights(their.status) if ours["state"] in FINAL else not mine:
                trained_otherwise.add(their.run.key)
            if ours["state"] not in FINAL:
                (added if mine else busy).append(their.label)
                if mine:
                    run.take(their.run, say)
            elif _result(ours) != _result(their.status):
                conflicts.append(f"{their.label} ({_words(ours)} here, {_words(their.status)} there)")
            else:
                same += 1
                students += mine and _take_files(run, their.run, ours, say)
    for path in sorted((source / "costs").glob("*.json")):
        if not store.cost(path.stem).exists():
            write_bytes(store.cost(path.stem), read_bytes(path))
    tables = tuple(name for name in manifest.table_folders(source) if _join(source, output, name, say))
    return Merged(
        tuple(added), same, students, tuple(conflicts), tuple(busy), tables,
        trained_otherwise=frozenset(trained_otherwise),
    )  # fmt: skip


@contextmanager
def merged(stores: Sequence[Path], say: Say = say) -> Iterator[Path]:
    """Several stores as one, which is gone afterwards; a single one as it is. Of two results the earlier store's stays.

    Runs that have not ended are in it as far as they came, where none of the stores has their result.

    Raises:
        UserError: one is no store.
    """
    if len(stores) == 1:
        yield stores[0]
        return
    with tempfile.TemporaryDirectory() as folder:
        begun = list[Run]()
        for store in stores:
            theirs = whole(store, say)
            came = _merge(theirs.ended, store, Path(folder), say)
            begun += [one.run for one in theirs.begun if _teacher(one.run) not in came.trained_otherwise]
            if came.missing:
                say(f"{store}: {came.missing}")
        for their in sorted(begun, key=lambda run: len(run.saved), reverse=True):
            run = Store(Path(folder)).run(their.key)
            if run.state == "missing":
                run.take(their, say)
        yield Path(folder)


def _keys(shown: Manifest) -> Iterable[str]:
    """The runs that a table shows, and those of its teachers."""
    return [*(cell.key for cell in shown.cells), *(c.teacher.cell for c in shown.columns if c.teacher.cell)]


def _identity(run: Run) -> dict[str, Any]:
    return documents.read(run / "cell.json", documents.WholeIdentity) or {}


def _label(run: Run) -> str:
    return _identity(run).get("label", run.path.name)


def _teacher(run: Run) -> str:
    """The key of the cell that trained a run's teacher, or empty."""
    return (_identity(run).get("cell", {}).get("teacher") or {}).get("cell", "")


def _named_key(output: Path, start: str, unfinished: bool) -> str:
    """The key of :func:`.whole_runs.named`, or, with ``unfinished``, of one that has not ended."""
    try:
        return named(output, start).run.key
    except Unfinished as begun:
        if not unfinished:
            raise
        return begun.run.key


def _result(status: dict[str, Any]) -> str:
    """What two computations of one cell have to agree in."""
    return text([status["state"], status.get("last"), status.get("best")])


def _weights(status: dict[str, Any]) -> str:
    """The digest of the deployed network."""
    return status.get("files", {}).get(STUDENT, "")


def _words(status: dict[str, Any]) -> str:
    values = ", ".join(f"{name} {value:.2f}" for name, value in status.get("last", {}).items())
    return values or status["state"]


def _take_files(run: Run, other: Run, ours: dict[str, Any], say: Say) -> bool:
    """Take what is damaged or missing in a run and is here what was written; whether it is the deployed network."""
    taken = []
    for name in ("metrics.json", STUDENT):
        if not (other / name).is_file() or not (damage := run.damage(name)):
            continue
        if ours.get("files", {}).get(name) == sha256_file(other / name):
            if (run / name).exists():
                run.set_aside([name], f"{documents.reason(damage)}; taken from elsewhere", say)
            run.write(name, read_bytes(other / name))
            taken.append(name)
    return STUDENT in taken


def _join(source: Path, output: Path, table_folder: str, say: Say) -> bool:
    """Let a table of ``output`` show what that of ``source`` shows besides; whether it shows more now."""
    theirs = manifest.existing(source, table_folder)
    before, joined = manifest.adopt(output, table_folder, theirs)
    there = {cell.key for cell in joined.cells}
    if lost := len({cell.key for cell in theirs.cells} - there):
        say(
            f"table {table_folder} stays as it is in {counted(lost, 'cell')}: they are under another protocol, teacher "
            f"or setting, or of other data; the runs are in the store"
        )
    return before != joined


def _check_manifest(shown: Manifest, table_folder: str) -> None:
    """Raise Damaged where what becomes the name of a file is none."""
    keys = [*_keys(shown), *(cost.key for cost in shown.costs)]
    names = [shown.name, *([shown.published] if shown.published else [])]
    if odd := [key for key in keys if not _KEY.fullmatch(key)] + [name for name in names if not _NAME.fullmatch(name)]:
        raise Damaged(f"tables/{table_folder}/plan.json names {odd[0][:80]!r}")
    for kind, places in (("row", shown.rows), ("column", shown.columns)):
        if odd := [p.key for p in places if ".." in p.key or p.key.startswith("/") or not p.key.isprintable()]:
            raise Damaged(f"tables/{table_folder}/plan.json has a {kind} {odd[0][:80]!r}")
    rows, columns = {row.key for row in shown.rows}, {column.key for column in shown.columns}
    shown_places = [*(cell.place for cell in shown.cells), *(cost.place for cost in shown.costs)]
    if odd := [f"{row} on {column}" for row, column in shown_places if row not in rows or column not in columns]:
        raise Damaged(f"tables/{table_folder}/plan.json has a place {odd[0][:80]!r} and no such row or column")
    if not table_folder.startswith(shown.name):
        raise Damaged(f"tables/{table_folder}/plan.json is of table {shown.name}")
