"""Where the number in a place of a table comes from, run by run. Imports no torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_methods.errors import Damaged, UserError

from ..common.console import say
from ..common.places import PROGRAM
from ..config.changed_rows import flat
from ..config.protocol import Changes, Protocol, load_protocol
from ..config.published import pair_entries
from ..config.table_spec import TableSpec, load_table, table_folder_of, table_names
from ..store import documents, manifest
from ..store.manifest.shapes import Manifest, PlannedCell, PlannedColumn, PlannedRow
from ..store.runs import Run, Store
from ..store.selection import Selection, selected
from . import verdicts
from .collect import collect
from .table_layout import signed


@dataclass(frozen=True)
class Value:
    """A resolved value and what it was taken from."""

    name: str
    value: Any
    source: str


@dataclass(frozen=True)
class Seed:
    """One run of the place: how it ended, what computed it, its curve by epoch, and what gives it again.

    ``student`` is the file of the deployed network and ``sha256`` what it was when the run was done.
    """

    seed: int
    key: str
    folder: Path
    state: str
    message: str
    last: float | None
    best: float | None
    environments: tuple[documents.Environment, ...]
    curve: tuple[float, ...]
    student: Path
    sha256: str
    command: str
    plugins: Mapping[str, str]

    @property
    def here(self) -> bool:
        """Whether the student's file is in the store as it was; reads it."""
        return self.student.is_file() and not Run(self.folder, self.key).damage("student.pt")


@dataclass(frozen=True)
class Explanation:
    """Everything that a place of a table rests on.

    ``protocol_lines`` say the table's protocol as its caption does, with milestones in epochs that were trained.
    """

    table_folder: str
    title: str
    pair: str
    metric: str
    outcome: tuple[str, ...]
    protocol_lines: tuple[str, ...]
    protocol: tuple[Value, ...]
    settings: tuple[Value, ...]
    teacher: tuple[str, ...]
    data: str
    versions: Mapping[str, int]
    deviations: tuple[str, ...]
    seeds: tuple[Seed, ...]


@dataclass(frozen=True)
class FolderOptions:
    """The words of the command line that made a table's folder: its preset and what they changed of the protocol."""

    table: str
    spec: TableSpec
    preset: str
    changes: Changes
    uniform: bool

    def command(self, row: str, column: PlannedColumn, seed: int, environment: Mapping[str, Any]) -> str:
        """What computes a run again, in a store of its own, on a processor as the one of its ``environment``."""
        words = [self.table, *(["--preset", self.preset] if self.preset != "paper" else [])]
        words += ["--methods", row, "--pairs", column.key, "--seeds", str(seed)]
        words += [word for name, value in self.changes.items() for word in _option(name, value)]
        words += ["--settings", "uniform"] if self.uniform else []
        words += ["--any-teacher"] if column.teacher.off else []
        if environment.get("device") == "cpu":
            words += ["--device", "cpu", "--threads", str(environment.get("arithmetic", {}).get("threads", 1))]
        words += ["--no-cost", "--output", "again"]
        return " ".join([PROGRAM, *map(shlex.quote, words)])


def _option(name: str, value: object) -> list[str]:
    """The words that change the protocol by that name."""
    return [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]


def explain(
    output: Path | str, table_folder: str, row: str, pair: str, table: str = "", say: Callable[[str], None] = say
) -> Explanation:
    """What the number in a place of a table comes from.

    Args:
        output: the store's folder.
        table_folder: its name in it.
        row: the row's key.
        pair: the column's key.
        table: the table's name or YAML file, where it is not one that ships with the suite.
        say: called with a line for each run that is damaged.

    Raises:
        UserError: no such table, row or column, or nothing in that place.
    """
    output = Path(output)
    shown = manifest.existing(output, table_folder)
    place = selected(shown, Selection((row,), (pair,))).model_copy(update={"quoted": {}})
    if len(place.columns) > 1:
        names = ", ".join(column.key for column in place.columns)
        raise UserError(f"{pair} has several columns in {table_folder}; name one of {names}")
    if not place.cells:
        raise UserError(f"table {table_folder} has nothing for row {row} on {pair}; run it first")
    return of_place(place, table_folder, Store(output), asked(shown, table_folder, table), say)


def of_place(
    place: Manifest, table_folder: str, store: Store, words: FolderOptions | None, say: Callable[[str], None] = say
) -> Explanation:
    """As :func:`explain`.

    Args:
        place: the manifest of the table with one row, one column, and the cells of that place alone.
        table_folder: its name in the store.
        store: where the runs are.
        words: by which the folder was made, see :func:`asked`.
        say: called with a line for each run that is damaged.
    """
    (planned,), (column,) = place.rows, place.columns
    cells = sorted(place.cells, key=lambda cell: cell.seed)
    identity = _identity(store, cells)
    return Explanation(
        table_folder=table_folder,
        title=planned.title,
        pair=column.key,
        metric=column.metric,
        outcome=tuple(_outcome(verdicts.verdicts(collect(place, store, say)))),
        protocol_lines=place.protocol_lines,
        protocol=tuple(_protocol(identity, place, planned, words)),
        settings=tuple(_settings(cells[0], place, planned, words)),
        teacher=tuple(_teacher(identity, column, store)),
        data=f"{identity.get('task', column.task)}, fingerprint {identity.get('data', column.data)}",
        versions=_versions(identity),
        deviations=place.deviations,
        seeds=tuple(_seed(cell, store, column, words, say) for cell in cells),
    )


def _identity(store: Store, cells: Sequence[PlannedCell]) -> dict[str, Any]:
    """The identity of the first cell that is written down; the others differ from it in their seed."""
    for cell in cells:
        with suppress(Damaged):  # which is said where the seeds are looked at
            if identity := documents.read(store.run(cell.key) / "cell.json", documents.WholeIdentity):
                return identity["cell"]
    return {}


def _versions(identity: Mapping[str, Any]) -> dict[str, int]:
    """Of the code: method, networks and task."""
    method = identity.get("method")
    of_method = {f"method:{method['name']}": method["version"]} if method else {}
    return {**of_method, **identity.get("versions", {})}


def asked(shown: Manifest, table_folder: str, table: str = "") -> FolderOptions | None:
    """By which words a folder was made; None where the table's file is not known, or has changed."""
    if not (table or shown.name in table_names()):
        return None
    table = table or shown.name
    spec = load_table(table)
    for preset in spec.presets:
        usual = load_protocol(spec.preset(preset).protocol)
        changes: Any = {
            name: value
            for name in ("epochs", "holdout", "precision", "accumulate", "sync_bn", "compile")
            if (value := shown.protocol.get(name, Protocol.model_fields[name].default)) != getattr(usual, name)
        }
        processes = (shown.protocol.get("detection") or {}).get("processes", shown.protocol.get("world_size", 1))
        changes |= {"processes": processes} if processes != usual.processes else {}
        try:
            changed = usual.changed(**changes)
        except (UserError, TypeError, ValueError):  # what others wrote down need not be a protocol's
            continue
        for uniform in (False, True):
            if table_folder_of(spec.name, preset, usual, changed, uniform) == table_folder:
                return FolderOptions(table, spec, preset, changes, uniform)
    return None


def _protocol(
    identity: Mapping[str, Any], shown: Manifest, row: PlannedRow, words: FolderOptions | None
) -> Iterator[Value]:
    """The values of the protocol that are not every protocol's, and the learning rate."""
    recorded = identity.get("protocol", shown.protocol)
    name = recorded.get("name", "")
    usual = load_protocol(words.spec.preset(words.preset).protocol) if words else None
    file: dict[str, Any] = flat(usual.identity()) if usual else {}
    written = _row_of(words, row)
    for key, value in flat(recorded).items():
        place, _, field = key.partition(".")
        changed = {"world_size": "processes"}.get(key, key.rpartition(".")[2])
        if place == "optimizer" and written and field in written.optimizer:
            source = f"row {written.id} of the table"
        elif words and changed in words.changes:
            source = f"command line ({_option(changed, True)[0]})"
        elif usual is None or file.get(key) == value:
            source = f"protocol {name}"
        else:
            source = f"as recorded; the protocol's file has {file.get(key, 'the default')} now"
        yield Value(key, value, source)
    if "lr" in identity:
        student, rate = identity["student"], identity["lr"]
        source = f"protocol {name}"
        if usual and usual.lr_by_student.get(student) == rate:
            source += ", for this student"
        elif usual and usual.lr_alone == rate and identity["teacher"] is None:
            source += ", for networks that learn alone"
        elif usual and usual.optimizer.lr != rate:
            source = f"as recorded; the protocol's file has {usual.optimizer.lr} now"
        yield Value("lr", rate, source)


def _row_of(words: FolderOptions | None, row: PlannedRow) -> Any:
    """The row as the table's file has it; None where it is the command line's."""
    rows = (words.spec.preset(words.preset).methods or ()) if words else ()
    return next((other for other in rows if other.id == (row.base or row.key)), None)


def _settings(cell: PlannedCell, shown: Manifest, row: PlannedRow, words: FolderOptions | None) -> Iterator[Value]:
    """The method's settings; of what gives a value the one that counts is the last that has it."""
    written = _row_of(words, row)
    layers: list[tuple[str, Mapping[str, Any]]] = [("default of the method's card", flat(row.defaults))]
    if not (words and words.uniform):
        for prefix, entry in pair_entries(row.method, cell.column, shown.recipe):
            values = {f"{prefix}{key}": value for key, value in flat(entry.values).items()}
            chosen = {f"{prefix}{key}" for key in entry.chosen()}
            for kind, keys in (("published", values.keys() - chosen), ("our choice", chosen)):
                layers.append((f"{kind} for this pair: {entry.source}", {key: values[key] for key in keys}))
    if written:
        layers.append((f"row {written.id} of the table", flat(written.settings_on(cell.column))))
    layers.append(("command line (--set)", row.changes))
    for key, value in flat(cell.settings).items():
        source = next((name for name, values in reversed(layers) if key in values), "")
        known = next((values[key] for _, values in reversed(layers) if key in values), None)
        if json.loads(json.dumps(known)) != value:
            source = "as recorded: from a command line, or files of another version"
        elif source == layers[0][0] and any(choice.key == key for choice in row.our_choice):
            source += ", our choice"
        yield Value(key, value, source)


def _teacher(identity: Mapping[str, Any], column: PlannedColumn, store: Store) -> Iterator[str]:
    ref = identity.get("teacher")
    if identity and not ref:
        yield "none: it learns alone"
        return
    planned = column.teacher
    ref = ref or planned.identity
    inputs = f", inputs normalised by mean {ref['mean']}, std {ref['std']}" if "mean" in ref else ""
    yield f"{ref.get('network', column.teacher_network)}{inputs}"
    if weights := ref.get("weights"):
        origin = f" ({planned.origin})" if planned.origin else ""
        yield f"file of entry {planned.entry or 'not recorded'}{origin}, digest of its weights {weights}"
        if planned.accuracy is not None:
            off = ", off what its entry expects" if planned.off else ""
            yield f"measures {column.metric} {planned.accuracy:.2f}{off}"
    elif key := ref.get("cell"):
        run = store.run(key)
        status = run.status
        values = ", ".join(f"{name} {value:.2f}" for name, value in status.get("last", {}).items())
        under = f" under {planned.trained_under}" if planned.trained_under else ""
        yield f"trained here{under}: run {run.path.name} ({values or status['state']})"
        if digest := status.get("files", {}).get("student.pt"):
            yield f"sha256 of its file {digest}"


def _seed(
    cell: PlannedCell, store: Store, column: PlannedColumn, words: FolderOptions | None, say: Callable[[str], None]
) -> Seed:
    run, metric = store.run(cell.key), column.metric
    status = run.status
    done = status["state"] == "done"
    try:
        environments = run.environments
        identity = documents.read(run / "cell.json", documents.WholeIdentity) or {}
    except Damaged as error:
        say(str(error))
        environments, identity = [], {}
    records = store.metrics(cell.key, say)
    return Seed(
        seed=cell.seed,
        key=cell.key,
        folder=run.path,
        state=status["state"],
        message=_so_far(status) or status.get("message", ""),
        last=status["last"].get(metric) if done else None,
        best=status["best"].get(metric) if done else None,
        environments=tuple(environments),
        curve=tuple(r["metrics"][metric] for r in records if not r.get("phase") and metric in r["metrics"]),
        student=run / "student.pt",
        sha256=status.get("files", {}).get("student.pt", ""),
        command=words.command(cell.row, column, cell.seed, environments[0] if environments else {}) if words else "",
        plugins=identity.get("cell", {}).get("plugins", {}),
    )


def _so_far(status: dict[str, Any]) -> str:
    """How far a run came that has not ended, where it says so."""
    begun = status["state"] in ("running", "interrupted") and "epochs" in status
    return f"{status['epoch']} of {status['epochs']} epochs" if begun else ""


def _outcome(judged: Sequence[verdicts.Verdict]) -> Iterator[str]:
    for one in judged:
        gap = "" if one.gap is None else f", gap {signed(one.gap)}"
        yield f"published {one.published:.2f} ({one.epoch_rule} epoch, {one.source}){gap}: {one.words}"
