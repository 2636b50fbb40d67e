"""A store as data: one record per cell, epoch, cost or verdict, every value in a column of its own.

Imports neither torch nor, before a frame is asked for, pandas.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from kd_methods.errors import UserError, unknown

from ..common.console import say
from ..common.events import EpochRecord
from ..common.files import canonical, csv_text, write_bytes
from ..common.places import folders
from ..store import manifest
from ..store.manifest.shapes import Manifest, PlannedRow
from ..store.runs import Facts, Store
from ..store.selection import ALL, Selection, selected
from . import verdicts
from .collect import collect, measured_teacher
from .collect_cost import measured_costs

if TYPE_CHECKING:
    import pandas as pd

Level = Literal["cell", "epoch", "cost", "verdict"]
Format = Literal["csv", "json", "parquet"]

Record = dict[str, Any]

TYPES = {
    **dict.fromkeys(
        ("seed", "epoch", "epochs", "n", "planned", "batch_size", "steps", "peak_memory_bytes", "reserved_memory_bytes",
         "extra_train_params", "extra_inference_params"),
        "Int64",
    ),
    **dict.fromkeys(("taught", "published_settings", "first_phases"), "boolean"),
    **dict.fromkeys(
        ("last", "best", "value", "teacher_accuracy", "lr", "seconds", "images_per_second", "inputs_per_second",
         "ours", "std", "published", "published_std", "gap"),
        "Float64",
    ),
}  # fmt: skip
"""Types of columns as pandas calls them; metrics and losses are Float64, others text, what has parts as JSON."""


PARTS = ("memory_by_part", "memory_split")
"""What of a cost has parts: a column for each, in bytes."""


def load(
    results: Path | str | None = None, table: str = "", level: Level = "cell", say: Callable[[str], None] = say
) -> pd.DataFrame:
    """A store as a tidy DataFrame with typed columns.

    Args:
        results: the store's folder; by default the command line's (``KDBENCH_OUTPUT``, or ``results``).
        table: the folder of one table in it, such as ``table2-demo``; by default all tables. A cell that two tables
            show is there twice.
        level: ``cell``: one line per row, pair and seed, with ``last`` and ``best`` of the column's metric;
            ``epoch``: one line per epoch of each, with ``value``, all metrics (``metric.NAME``) and all losses
            (``loss.NAME``); ``cost``: one line per row and pair whose cost was measured, with inputs per second,
            seconds and bytes; ``verdict``: one line per published value, with ours, the gap and the verdict
            (:data:`benchmarks.report.verdicts.RULE`).
        say: called with a line for each run that is damaged, and so has no epochs.

    Raises:
        UserError: there is no such table, or level.
    """
    if level not in get_args(Level):
        raise unknown("level", level, get_args(Level))
    folder = Path(results) if results is not None else folders()["output"]
    return frame(
        [record for name in table_folders(folder, table) for record in of_table(folder, name, level, ALL, say)]
    )


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """Records as a DataFrame; a column for each of their names, typed by :data:`TYPES`."""
    import pandas as pd

    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: pd.array([record.get(name) for record in records], dtype=_type(name)) for name in names}
    return pd.DataFrame(columns)


def table_folders(results: Path, table: str = "") -> list[str]:
    """The tables of a store, or one of them.

    Raises:
        UserError: there is none, or not that one.
    """
    if table:
        manifest.existing(results, table)
        return [table]
    if written := manifest.table_folders(results):
        return written
    raise UserError(f"no table in {results}; run one first, or name another folder")


def of_table(
    results: Path, table_folder: str, level: Level, wanted: Selection = ALL, say: Callable[[str], None] = say
) -> Iterator[Record]:
    """The records of one table, in the order of its rows, columns, seeds and epochs.

    Raises:
        UserError: there is no such table, or not what is wanted of it.
    """
    return of_manifest(
        selected(manifest.existing(results, table_folder), wanted), table_folder, Store(results), level, say
    )


def of_manifest(
    shown: Manifest, table_folder: str, store: Store, level: Level, say: Callable[[str], None] = say
) -> Iterator[Record]:
    """The records of what a manifest shows; ``table_folder``: what they call the table."""
    if level == "cost":
        yield from _costs(shown, table_folder, store, say)
        return
    if level == "verdict":
        judged = verdicts.verdicts(collect(shown, store, say))
        yield from ({**asdict(one), "table": table_folder} for one in judged)
        return
    rows, columns = {row.key: row for row in shown.rows}, {column.key: column for column in shown.columns}
    order = {key: i for i, key in enumerate([*rows, *columns])}
    cells = sorted(shown.cells, key=lambda cell: (order[cell.row], order[cell.column], cell.seed))
    facts, of_columns = store.facts(cell.key for cell in cells), _of_columns(shown, store)
    whole = {"table": table_folder, "protocol": shown.recipe, "deviations": canonical(list(shown.deviations))}
    for cell in cells:
        row, column = rows[cell.row], columns[cell.column]
        place = {"table": table_folder, "row": row.key, "pair": column.key, "metric": column.metric, "seed": cell.seed}
        if level == "epoch":
            yield from (place | {"key": cell.key} | _epoch(one, column.metric) for one in store.metrics(cell.key, say))
            continue
        yield place | _described(row, of_columns[column.key]) | whole | {
            "settings": canonical(cell.settings), "taught": cell.taught,
            "published_settings": cell.published_settings, **_outcome(facts[cell.key], column.metric), "key": cell.key,
        }  # fmt: skip


def _costs(shown: Manifest, table_folder: str, store: Store, say: Callable[[str], None]) -> Iterator[Record]:
    rows, of_columns = {row.key: row for row in shown.rows}, _of_columns(shown, store)
    for planned, measured in measured_costs(shown, store, say):
        place = {"table": table_folder, "row": planned.row, "pair": planned.column}
        figures = dict[str, Any]()
        for name, value in asdict(measured["cost"]).items():
            if name in PARTS:
                figures |= {f"{name}.{part}": held for part, held in (value or {}).items()}
            else:
                figures[name] = canonical(value) if isinstance(value, list | tuple) else value
        facts = measured["environment"]
        yield place | _described(rows[planned.row], of_columns[planned.column]) | figures | {
            "date": facts["date"], "commit": facts["commit"], "machine": facts["machine"], "key": planned.key,
        }  # fmt: skip


def _of_columns(shown: Manifest, store: Store) -> dict[str, Record]:
    """What each column is."""
    return {
        column.key: {
            "teacher": column.teacher_network, "student": column.student, "task": column.task,
            "teacher_entry": column.teacher.entry, "teacher_accuracy": measured_teacher(column, store)[0],
        }
        for column in shown.columns
    }  # fmt: skip


def _described(row: PlannedRow, column: Record) -> Record:
    """What a row and a column are."""
    of_row = {"title": row.title, "family": row.family, "method": row.method, "optimizer": row.optimizer}
    return of_row | column | ({"student": row.student} if row.student else {})


def _outcome(facts: Facts, metric: str) -> Record:
    """How a run ended and what computed it."""
    status, environments = facts
    done = status["state"] == "done"
    last = environments[-1] if environments else None
    return {
        "state": status["state"], "last": status["last"].get(metric) if done else None,
        "best": status["best"].get(metric) if done else None, "epochs": status.get("epochs"),
        "message": status.get("message", ""), "remarks": canonical(status.get("remarks", [])),
        "date": last["date"] if last else None, "commit": last["commit"] if last else None,
        "machine": last["machine"] if last else None, "torch": last["versions"]["torch"] if last else None,
    }  # fmt: skip


def _epoch(one: EpochRecord, metric: str) -> Record:
    """An epoch of a run; ``phase`` is empty in the training proper."""
    kinds = {"metric": one["metrics"], "loss": one.get("losses", {}), "watched": one.get("watched", {})}
    values = {f"{kind}.{name}": value for kind, named in kinds.items() for name, value in named.items()}
    facts = {"epoch": one["epoch"], "phase": one.get("phase", ""), "value": one["metrics"].get(metric)}
    return facts | {"lr": one.get("lr"), "seconds": one.get("seconds")} | values


def _type(name: str) -> str:
    if name.startswith(tuple(f"{part}." for part in PARTS)):
        return "Int64"
    return TYPES.get(name, "Float64" if name.startswith(("metric.", "loss.", "watched.")) else "string")


def as_csv(records: list[Record]) -> str:
    """Records as CSV; numbers in full, truth as true and false, nothing where there is no value."""
    names = list(dict.fromkeys(name for record in records for name in record))
    return csv_text([names, *([_field(record.get(name)) for name in names] for record in records)])


def as_json(records: list[Record]) -> str:
    """Records as a JSON list of objects; what is no finite number is null."""
    return json.dumps([{name: _number(value) for name, value in record.items()} for record in records], indent=1) + "\n"


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _field(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, bool) else value


def write(file: Path, form: Format, results: Path, table: str = "", level: Level = "cell") -> int:
    """Write the records of a table, or with no name of all, and return how many they are.

    Raises:
        UserError: the file cannot be written, or parquet needs a package that is not there.
    """
    if form == "parquet":
        loaded = load(results, table, level)
        content = io.BytesIO()
        try:
            loaded.to_parquet(content)
        except ImportError:
            raise UserError("--format parquet needs pyarrow (pip install pyarrow); csv and json do not") from None
        write_bytes(file, content.getvalue())
        return len(loaded)
    records = [record for name in table_folders(results, table) for record in of_table(results, name, level)]
    text = as_csv(records) if form == "csv" else as_json(records)
    write_bytes(file, text.encode())
    return len(records)
