"""A table's manifest, plan.json: which cells it shows. With the store it determines the table completely.

Rendering reads nothing else: neither data nor checkpoints, clock nor environment. Imports no torch.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from kd_methods.errors import UserError

from .. import report
from ..common.files import locked, read_csv, read_json, write_json
from ..common.yaml_files import TABLES, Strict
from .runs import FINAL, Store

Manifest = dict[str, Any]


def merge(old: Manifest | None, new: Manifest) -> Manifest:
    """Add a plan to what the table showed before, so that a run of some rows or columns loses nothing.

    An old entry stays if its protocol is the same, and in its column the teacher and the data; what was computed
    otherwise would mix with the new cells, and is left out of the table (it stays in the store).
    """
    old, new = old and upgraded(old), upgraded(new)
    if not old or old["protocol"] != new["protocol"]:
        return new
    data = {column["task"]: column["data"] for column in new["columns"]}
    if any(data.get(column["task"], column["data"]) != column["data"] for column in old["columns"]):
        return new
    teachers = {column["key"]: _identity(column) for column in new["columns"]}
    settings = {(entry["row"], entry["column"]): entry["settings"] for entry in new["cells"]}
    seeds = {(entry["row"], entry["column"], entry["seed"]) for entry in new["cells"]}
    before = {column["key"]: _identity(column) for column in old["columns"]}

    def stays(entry: dict[str, Any]) -> bool:
        place, column = (entry["row"], entry["column"]), entry["column"]
        same_teacher = not entry["taught"] or before[column] == teachers.get(column, before[column])
        return (
            (*place, entry["seed"]) not in seeds
            and same_teacher
            and settings.get(place, entry["settings"]) == entry["settings"]
        )

    cells = [entry for entry in old["cells"] if stays(entry)]
    shown = {(entry["row"], entry["column"]) for entry in [*cells, *new["cells"]]}
    measured = {(cost["row"], cost["column"]) for cost in new["costs"]}
    costs = [cost for cost in old["costs"] if (cost["row"], cost["column"]) in shown - measured]
    return {
        **new,
        "cells": cells + new["cells"],
        "costs": costs + new["costs"],
        "rows": _joined(old["rows"], new["rows"], {row for row, _ in shown}, new["row_order"]),
        "columns": _joined(old["columns"], new["columns"], {column for _, column in shown}, new["column_order"]),
    }


def upgraded(manifest: Manifest) -> Manifest:
    """A manifest as it is written now; before there were tables of several tasks, all columns shared theirs."""
    if "metric" not in manifest:
        return manifest
    task = manifest["protocol_lines"][0].partition(" on ")[2].partition(":")[0]
    shared = {"task": task, **{name: manifest[name] for name in ("metric", "metric_title", "data")}}
    columns = [{"init": "", **shared, **column} for column in manifest["columns"]]
    return {key: value for key, value in manifest.items() if key not in shared} | {"columns": columns}


def _identity(column: dict[str, Any]) -> Any:
    return column["teacher"]["identity"]


def _joined(old: list[Any], new: list[Any], shown: set[str], order: list[str]) -> list[Any]:
    """Old and new rows or columns that still show something, in the table's order; the new description wins."""
    by_key = {item["key"]: item for item in [*old, *new] if item["key"] in shown}
    place = {key: i for i, key in enumerate(order)}
    return sorted(by_key.values(), key=lambda item: place.get(item["key"], len(order)))


def path(output: Path, stem: str) -> Path:
    """Where a table's manifest lies."""
    return output / "tables" / stem / "plan.json"


def save(output: Path, stem: str, new: Manifest) -> Manifest:
    """Merge a plan into the table's manifest and write it; of several processes none loses another's rows."""
    with locked(path(output, stem).parent):
        merged = merge(read_json(path(output, stem)), new)
        write_json(path(output, stem), merged)
    return merged


def render(output: Path, stem: str) -> tuple[list[Path], str]:
    """Write a table and its cost table from the store; returns the files and the table as Markdown.

    Raises:
        UserError: nothing was ever planned under that name.
    """
    manifest = read_json(path(output, stem))
    if manifest is None:
        known = sorted(p.parent.name for p in (output / "tables").glob("*/plan.json"))
        raise UserError(f"no table '{stem}' in {output} (there: {', '.join(known) or 'none'}); run it first")
    manifest = upgraded(manifest)
    store = Store(output)
    table = collect(manifest, store)
    folder = path(output, stem).parent
    files = report.write(table, folder, manifest["name"])
    text = next(file for file in files if file.suffix == ".md").read_text(encoding="utf-8")
    if efficiency := manifest.get("efficiency"):
        files += report.write_efficiency(table, _curves(manifest, store), **efficiency, folder=folder)
    if cost := collect_cost(manifest, store, table):
        files += report.write_cost(cost, folder, f"{manifest['name']}-cost")
    return files, text


def collect(manifest: Manifest, store: Store) -> report.Table:
    """The table's content out of the store."""
    facts: list[dict[str, Any]] = []
    entries: dict[str, dict[str, list[report.Run]]] = {}
    metrics = {column["key"]: column["metric"] for column in manifest["columns"]}
    remarks: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    for planned in manifest["cells"]:
        run = store.run(planned["key"])
        status = run.status
        for remark in status.get("remarks", []):
            remarks[planned["row"]][remark][planned["column"]] = None
        state: Any = status["state"] if status["state"] in (*FINAL, "failed") else "missing"
        metric = metrics[planned["column"]]
        if state == "done" and metric not in status["last"]:
            raise UserError(f"column {planned['column']} has no metric '{metric}'; known: {', '.join(status['last'])}")
        figures = {rule: status[rule][metric] for rule in ("last", "best")} if state == "done" else {}
        entries.setdefault(planned["row"], {}).setdefault(planned["column"], []).append(
            report.Run(planned["seed"], state, **figures, message=status["message"] if state == "refused" else "")
        )
        if state == "done":
            facts += run.environments
    usual: dict[tuple[str, str], bool] = defaultdict(lambda: True)
    for planned in manifest["cells"]:
        usual[planned["row"], planned["column"]] &= planned["published_settings"]
    columns = tuple(_column(column, manifest, store) for column in manifest["columns"])
    titles = dict.fromkeys(column["metric_title"] for column in manifest["columns"])
    rows = tuple(
        report.Row(
            key=row["key"],
            title=row["title"],
            family=row["family"],
            entries={
                column["key"]: report.Entry(
                    tuple(sorted(entries.get(row["key"], {}).get(column["key"], []), key=lambda run: run.seed)),
                    _published(manifest, row.get("published", row["method"]), column, usual[row["key"], column["key"]]),
                )
                for column in manifest["columns"]
            },
            our_choice=tuple(row["our_choice"]),
            settings_note="; ".join(
                [*_settings_note(row, manifest), *_remarks(remarks[row["key"]], len(entries.get(row["key"], {})))]
            ),
        )
        for row in manifest["rows"]
    )
    quoted = tuple(
        report.Row(key, title, "quoted", _quoted(manifest, key)) for key, title in manifest.get("quoted", {}).items()
    )
    columns, rows = report.with_means(columns, rows)
    return report.Table(
        name=manifest["name"],
        title=manifest["title"],
        metric=next(iter(titles)) if len(titles) == 1 else "The metric named over each column",
        columns=columns,
        rows=rows,
        quoted=tuple(row for row in quoted if row.entries),
        protocol_lines=(*manifest["protocol_lines"], *_rates(manifest)),
        deviations=tuple(manifest["deviations"]),
        notes=tuple(manifest["notes"]),
        provenance=_provenance(facts),
    )


def _curves(manifest: Manifest, store: Store) -> dict[tuple[str, str, int], list[float]]:
    """The metric after every epoch of the training proper, by row, column and seed."""
    metrics = {column["key"]: column["metric"] for column in manifest["columns"]}
    return {
        (cell["row"], cell["column"], cell["seed"]): [
            record["metrics"][metrics[cell["column"]]]
            for record in store.run(cell["key"]).metrics
            if not record.get("phase")
        ]
        for cell in manifest["cells"]
    }


def collect_cost(manifest: Manifest, store: Store, table: report.Table) -> report.CostTable | None:
    """The cost table's content out of the store, or None where no cost was measured."""
    measured: dict[str, dict[str, report.CostEntry]] = {}
    facts = []
    for planned in manifest["costs"]:
        figures = read_json(store.cost(planned["key"]))
        if figures:
            measured.setdefault(planned["row"], {})[planned["column"]] = report.CostEntry(**figures["cost"])
            facts.append(figures["environment"])
    if not measured:
        return None
    rows = tuple(
        report.CostRow(row.key, row.title, row.family, measured[row.key], _refused(row))
        for row in table.rows
        if row.key in measured
    )
    planned = {column["key"] for column in manifest["columns"]}  # a mean over tasks costs nothing
    columns = tuple(column for column in table.columns if column.key in planned)
    return report.CostTable(table.name, table.title, columns, rows, _provenance(facts))


def _refused(row: report.Row) -> frozenset[str]:
    return frozenset(key for key, entry in row.entries.items() if any(run.status == "refused" for run in entry.runs))


def _column(column: dict[str, Any], manifest: Manifest, store: Store) -> report.Column:
    teacher = column["teacher"]
    if teacher["cell"]:
        accuracy = store.run(teacher["cell"]).status.get("last", {}).get(column["metric"])
        note = f"trained here under {teacher.get('trained_under', 'the same protocol')}, seed 0"
    else:
        accuracy = teacher["accuracy"]
        note = f"entry {teacher['entry']}" + (", off its expected accuracy" if teacher["off"] else "")
    if column["init"]:
        note += f"; {_START[column['init']]}"
    return report.Column(
        key=column["key"],
        teacher=column["teacher_network"],
        student=column["student"],
        teacher_accuracy=accuracy,
        teacher_note=note,
        teacher_published=_published(manifest, "teacher", column, True),
        task=column["task"],
        metric=column["metric"],
    )


def _rates(manifest: Manifest) -> list[str]:
    """The students that have a learning rate of their own."""
    rates: dict[float, list[str]] = defaultdict(list)
    for student, rate in sorted({(column["student"], column["lr"]) for column in manifest["columns"]}):
        rates[rate].append(student)
    return [f"lr {rate:g} for {', '.join(names)}" for rate, names in rates.items() if rate != manifest["lr"]]


def _remarks(found: Mapping[str, Mapping[str, None]], columns: int) -> list[str]:
    """What a row's runs say of how the method was built, with the columns where it is not all of them."""
    return [text if len(own) == columns else f"{text} ({', '.join(own)})" for text, own in found.items()]


def _settings_note(row: dict[str, Any], manifest: Manifest) -> list[str]:
    """What differs in a row from the method's defaults, by column where it differs between columns."""
    used = {cell["column"]: flat(cell["settings"]) for cell in manifest["cells"] if cell["row"] == row["key"]}
    defaults = flat(row["defaults"])
    changed: dict[str, list[str]] = defaultdict(list)
    for column, settings in sorted(used.items()):
        if differing := ", ".join(f"{k} {v}" for k, v in settings.items() if v != defaults.get(k)):
            changed[differing].append(column)
    texts = [f"{text} for {', '.join(columns)}" for text, columns in changed.items()]
    if [len(columns) for columns in changed.values()] == [len(used)]:
        texts = list(changed)
    if optimizer := row.get("optimizer"):
        texts = [optimizer, *texts]
    if student := row.get("student"):
        texts = [f"the network trained is {student}", *texts]
    if init := row.get("init"):
        texts = [_START[init], *texts]
    return texts


_START = {"heads": "the student starts from its teacher's neck and heads"} | {
    which: f"the student starts from its teacher's weights and {text} layers"
    for which, text in (("first", "first"), ("last", "last"), ("spread", "equally spread"))
}


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of a combination's parts as ``part.key``."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = flat(value) if isinstance(value, dict) else None
        found |= {key: value} if inner is None else {f"{key}.{name}": x for name, x in inner.items()}
    return found


def _published(
    manifest: Manifest, method: str, column: dict[str, Any], usual_settings: bool
) -> report.Published | None:
    """The literature's figure for a method on a pair, from the first of the table's sources that has one."""
    if not manifest["published"]:
        return None
    found = [line for line in literature(manifest["published"]) if (line.method, line.pair) == (method, column["key"])]
    rank = {name: i for i, name in enumerate(manifest["sources"])}

    def order(line: PublishedLine) -> tuple[int, int]:
        place = next((i for name, i in rank.items() if name in line.source), len(rank))
        return line.protocol != manifest["recipe"], place

    if not found:
        return None
    line = min(found, key=order)
    reasons = []
    if line.protocol != manifest["recipe"]:
        reasons.append(f"published under {line.protocol}")
    elif manifest["deviations"]:
        reasons.append("our protocol deviates from the published one")
    if not usual_settings:
        reasons.append("other settings than the published ones")
    if method != "student":
        if column["teacher"]["origin"] != line.teacher:
            reasons.append("another teacher")
        elif column["teacher"]["off"]:
            reasons.append("the teacher is off its expected accuracy")
    return report.Published(
        value=line.value,
        std=line.std,
        source=line.source + (f", {line.note}" if line.note else ""),
        epoch_rule=line.epoch_rule,
        comparable=not reasons,
        reason="; ".join(reasons),
    )


def _quoted(manifest: Manifest, key: str) -> dict[str, report.Entry]:
    """The published values of a method that is not run, by column."""
    found = {column["key"]: _published(manifest, key, column, True) for column in manifest["columns"]}
    return {column: report.Entry((), value) for column, value in found.items() if value}


class PublishedLine(Strict):
    """A line of a file of tables/published/: what a source gives for a method on a pair."""

    method: str
    pair: str
    value: float
    std: float | None = None
    source: str
    epoch_rule: Literal["last", "best", "unknown"]
    protocol: str
    teacher: str
    note: str = ""


@functools.cache
def literature(name: str) -> list[PublishedLine]:
    """The lines of a file of tables/published/.

    Raises:
        UserError: there is none, or a line is malformed (file and line are named).
    """
    return read_csv(TABLES / "published" / name, PublishedLine)


def _provenance(facts: list[dict[str, Any]]) -> tuple[str, ...]:
    """Dates, machines, commits and versions of a set of runs, each named once."""
    if not facts:
        return ()
    dates = sorted({fact["date"] for fact in facts})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    commits = ", ".join(sorted({fact["commit"] or "no commit" for fact in facts}))
    machines = ", ".join(sorted({fact["machine"] for fact in facts}))
    torches = ", ".join(sorted({fact["versions"]["torch"] for fact in facts}))
    return (f"run {span} at commit {commits}", f"on {machines} with torch {torches}")
