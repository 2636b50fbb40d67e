"""What programs call: plans, tables and single cells, from Python; :mod:`benchmarks` has the names, docs/python.md
examples.

What is asked for are keyword arguments with the names of the command line's options. One call computes at a time;
those of other threads wait for it.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

import torch

from kd_methods.errors import UserError

from ..common import devices, places, plugins
from ..common.files import sha256_file
from ..common.machine import MOST_THREADS
from ..common.process import children
from ..common.workspace import Workspace
from ..config.changed_rows import changed_id, flat
from ..config.protocol import Changes
from ..config.table_spec import MAX_SEED
from ..report import records
from ..store.cell import Cell
from ..store.runs import Store
from .execution.crew import Crew
from .planning.plan import Request, make
from .reproduce import Options, compute, described, run
from .trackers import Tracker

if TYPE_CHECKING:
    import pandas as pd


class Where(TypedDict, total=False):
    """Folders, device (``auto``, ``cpu``, ``cuda``, ``cuda:N``) and plugin files; defaults as the command line's."""

    output: Path | str
    data_root: Path | str
    checkpoints: Path | str
    device: str
    plugins: Sequence[Path | str]


class How(Where, Changes, total=False):
    """Under which protocol, where, and by whom.

    preset   of the table; by default ``paper``
    uniform  each method's defaults on all pairs, not the settings that are published for them
    workers  how many groups are trained at a time, each in a process; by default 1, in this process
    threads  of each on a CPU; results depend on it; by default ``OMP_NUM_THREADS`` or 1
    """

    preset: str
    uniform: bool
    workers: int
    threads: int


class Asked(How, total=False):
    """Which rows, columns and seeds of a table, in this order; by default all."""

    methods: Sequence[str]
    pairs: Sequence[str]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Event:
    """What a callback gets: that a cell has ended an epoch, or has ended.

    state   ``running`` after an epoch; at the end ``done``, ``diverged``, ``failed`` or ``interrupted``
    epoch   from 1; of first phases of a method 0 and less; 0 at the end
    record  of the epoch what metrics.json has: ``metrics``, ``losses``, ``lr``, ``seconds``; empty at the end
    """

    cell: Cell
    state: str
    epoch: int
    record: Mapping[str, Any]


Callback = Callable[[Event], object]
"""Is called in this process. What it raises stops the run after the step, which is saved, and is raised by the call."""


def workspace(**place: Unpack[Where]) -> Workspace:
    """Where calls such as ``verify`` and ``convert`` work.

    Args:
        place: see :class:`Where`.

    Raises:
        TypeError: an argument that there is not.
        UserError: there is no such device, or a plugin cannot be loaded.
    """
    _check(place, Where)
    return _workspace(place)


def plan_table(table: str, **asked: Unpack[Asked]) -> pd.DataFrame:
    """The cells of a table without computing any: a line for each as :func:`benchmarks.load` has it.

    ``state`` says what is in the store; what is ``missing`` or ``interrupted`` a run would compute.

    Args:
        table: its name, or a YAML file.
        asked: see :class:`Asked`.

    Raises:
        TypeError: an argument that there is not.
        UserError: an unknown name, missing data that are not official ones, a damaged teacher file.
    """
    _check(asked, Asked)
    place = _workspace(asked)
    plan = make(_request(table, asked), place, stated=True)
    shown = described(plan, {}, place)
    return records.frame(list(records.of_manifest(shown, plan.table_folder, Store(place.output), "cell", place.say)))


def run_table(
    table: str, *, progress: Callback | None = None, costs: bool = False, **asked: Unpack[Asked]
) -> pd.DataFrame:
    """Run what a table needs and is not in the store, write the table, and give its cells as :func:`load` has them.

    A cell that failed or diverged is no error: ``state`` says so.

    Args:
        table: its name, or a YAML file.
        progress: is called with each epoch of each cell that is trained; cells that are in the store are not.
        costs: also measure what each row costs.
        asked: see :class:`Asked`.

    Raises:
        TypeError: an argument that there is not.
        UserError: bad input, missing data, a teacher that is not what its entry says.
        Interrupted: Ctrl-C; the same call goes on from there.
    """
    _check(asked, Asked)
    place = _workspace(asked)
    with _turn(asked):
        plan = make(_request(table, asked), place)
        run(plan, place, _options(asked, progress, costs))
    return records.frame(list(records.of_table(place.output, plan.table_folder, "cell", plan.selection, place.say)))


def run_cell(
    table: str,
    method: str,
    pair: str,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    *,
    progress: Callback | None = None,
    **how: Unpack[How],
) -> dict[str, Any]:
    """Run one cell, and its teacher, where the store does not have them; no table is written.

    Args:
        table: whose protocol, teachers and columns; a name, or a YAML file.
        method: a row of the table, or any method.
        pair: a column of the table, or ``teacher-student`` of any two networks.
        seed: of initialisation, order, augmentation.
        settings: of the method, beside those that the row has.
        progress: is called with each epoch.
        how: see :class:`How`.

    Returns:
        What a line of :func:`benchmarks.load` has: ``state``, ``last`` and ``best`` of the column's metric (None where
        ``state`` is not ``done``), ``message``, ``key`` and so on.

    Raises:
        TypeError: an argument that there is not.
        UserError: as of :func:`run_table`; or the pair has several columns.
        Interrupted: Ctrl-C; the same call goes on from there.
    """
    _check(how, How)
    place = _workspace(how)
    name = changed_id(method, flat(dict(settings or {})))
    asked: Asked = {**how, "methods": (name,), "pairs": (pair,), "seeds": (seed,)}
    with _turn(how):
        plan = make(_request(table, asked), place)
        if len(plan.cells) != 1:
            columns = ", ".join(column.id for column in plan.pairs)
            raise UserError(f"pair '{pair}' of {table} has several columns; name one of them: {columns}")
        shown = compute(plan, place, _options(how, progress))
    (record,) = records.of_manifest(shown, plan.table_folder, Store(place.output), "cell", place.say)
    return record


def _check(given: Mapping[str, Any], known: type) -> None:
    """Raise TypeError for a keyword argument that there is not."""
    if odd := given.keys() - known.__annotations__.keys():
        raise TypeError(f"unknown argument '{min(odd)}'; there are {', '.join(known.__annotations__)}")


_loaded: dict[Path, tuple[str, dict[str, str]]] = {}
"""The digests of plugin files and what they registered, by path: they are loaded once."""


def _workspace(place: Mapping[str, Any]) -> Workspace:
    files = tuple(Path(file).resolve() for file in place.get("plugins", ()))
    registered: dict[str, str] = {}
    for file in files:
        digest = sha256_file(file) if file.is_file() else ""
        if file not in _loaded:
            _loaded[file] = digest, plugins.load([file])
        known, brought = _loaded[file]
        if known != digest:
            raise UserError(
                f"plugin {file} has changed since it was loaded here; restart Python, which has the old one"
            )
        registered |= brought
    folders = {name: Path(place.get(name) or default) for name, default in places.folders().items()}
    device = devices.device(place.get("device", "auto"))
    data_root, checkpoints, output = (folders[name] for name in ("data_root", "checkpoints", "output"))
    return Workspace(device, data_root, checkpoints, output, registered, files)


def _request(table: str, asked: Asked) -> Request:
    for name in ("methods", "pairs", "seeds"):
        if isinstance(value := asked.get(name, ()), str) or not isinstance(value, Iterable):
            raise UserError(f"{name} {value!r}: give a list of them")
    for name in ("epochs", "holdout", "accumulate", "processes"):
        if asked.get(name) is not None:
            _number(name, asked[name], 0)  # type: ignore[literal-required]
    changes = cast(Changes, {name: asked[name] for name in Changes.__annotations__ if name in asked})  # type: ignore[literal-required]
    return Request(
        table,
        asked.get("preset", "paper"),
        tuple(asked.get("methods", ())),
        tuple(asked.get("pairs", ())),
        tuple(_number("seeds", seed, 0, MAX_SEED) for seed in asked.get("seeds", ())),
        changes,
        asked.get("uniform", False),
    )


def _options(how: How, progress: Callback | None, costs: bool = False) -> Options:
    trackers = (_follower(progress),) if progress else ()
    return Options(costs=costs, crew=Crew(_number("workers", how.get("workers", 1), 1)), trackers=trackers)


def _number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number, as Python or numpy has it."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        raise UserError(f"{name} {value!r}: give whole numbers from {least} {f'to {most}' if most else 'on'}")
    return number


def _threads(how: How) -> int:
    text = os.environ.get("OMP_NUM_THREADS") or "1"
    name, asked = "OMP_NUM_THREADS", int(text) if text.isdecimal() else text
    if how.get("threads") is not None:
        name, asked = "threads", how["threads"]
    if (threads := _number(name, asked, 1)) > MOST_THREADS:
        raise UserError(f"{name} {threads}: give at most {MOST_THREADS}")
    return threads


def _follower(progress: Callback) -> type[Tracker]:
    """A tracker that calls a callback, whose error ends the run."""

    class Follower(Tracker):
        name, essential = "progress", True

        def __init__(self, cell: Cell, folder: Path) -> None:
            self.cell = cell

        def epoch(self, record: Mapping[str, Any]) -> None:
            progress(Event(self.cell, "running", record["epoch"], record))

        def end(self, state: str) -> None:
            progress(Event(self.cell, state, 0, {}))

    return Follower


_one_at_a_time = threading.RLock()
_computing = False


@contextmanager
def _turn(how: How) -> Iterator[None]:
    """Inside, this call computes alone, with the threads that results are to have."""
    global _computing
    children.check_started_once()
    threads = _threads(how)
    with _one_at_a_time:
        if _computing:  # by this thread: others wait
            raise UserError("a call within a callback of another one would wait for it; make it afterwards")
        before, _computing = torch.get_num_threads(), True
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            _computing = False
            torch.set_num_threads(before)
