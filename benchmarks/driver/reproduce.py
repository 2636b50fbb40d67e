"""The driver: plan -> teachers -> groups that share one teacher pass -> store -> costs -> table."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kd_methods.errors import UserError

from .. import networks
from ..analysis import similarity
from ..common import environment
from ..common.console import Outcome, counted, say
from ..common.files import digest, read_json, write_json
from ..common.units import duration
from ..config.protocol import Protocol
from ..cost.profiling import cost_key
from ..report.collect import render
from ..store import manifest
from ..store.cell import Cell, TeacherRef
from ..store.runs import Store, today
from ..tasks import get_task
from ..teachers.cells import teacher_cell
from ..teachers.verification import Accuracies, is_off, test_inputs, usual_protocol
from ..teachers.zoo import TOLERANCE, Teacher, Zoo
from ..training.loop import Interrupted
from . import executors
from .describe import describe
from .estimate import estimate
from .executors import local
from .plan import Plan, Request, make
from .progress import Reporter

DAY = 86400.0


@dataclass(frozen=True)
class Options:
    """How a plan is run; what is run is in the :class:`benchmarks.driver.plan.Request`."""

    output: Path
    checkpoints: Path
    device: torch.device
    dry_run: bool = False
    any_teacher: bool = False
    costs: bool = True
    similarity: bool = False
    say: Callable[[str], None] = say


def reproduce(request: Request, options: Options) -> Outcome:
    """Run what a table needs and is not in the store, and write the table; the outcome's text is it as Markdown.

    Raises:
        UserError: bad input, missing data, a teacher that is not what its entry says.
        Interrupted: the user asked to stop; the same call goes on from there.
    """
    store, zoo = Store(options.output), Zoo(options.checkpoints)
    plan = make(request, zoo)
    cells = list({cell.key: cell for cell in plan.cells.values()}.values())
    todo = [cell for cell in [*plan.training, *cells] if not store.run(cell).ended]
    if options.dry_run or (todo and plan.preset == "paper"):
        _print_plan(plan, todo, request, options)
    if options.dry_run:
        return Outcome()
    store.check_writable()  # fails now rather than after hours
    watched = options.similarity or plan.table.similarity
    accuracies = check_teachers(plan, zoo, request, options) if todo else _known_accuracies(plan, options)
    shown = manifest.save(
        options.output, plan.stem, describe(plan, zoo, accuracies, environment.machine(options.device))
    )
    if todo:
        options.say(f"{counted(len(todo), 'cell')} to run, {len(cells) + len(plan.training) - len(todo)} in the store")
        weights = lambda ref: zoo.path(zoo.get(ref.entry))  # noqa: E731
        for task in plan.tasks:
            for protocol, waves in plan.waves([cell for cell in todo if cell.task == task]):
                where = request.data_root, options.device
                _train(waves, protocol.on_task(task), store, *where, weights, watched, request.plugin_files)
    files, text = render(options.output, plan.stem)
    not_measured = 0
    if options.costs:
        not_measured = measure_costs(plan, store, request, options)
        files, text = render(options.output, plan.stem)
    if watched:
        folder = manifest.path(options.output, plan.stem).parent
        for file in similarity.write(shown, store, folder, options.say):
            options.say(str(file))
    for cell in [*plan.training, *cells]:
        status = store.run(cell).status
        if status["state"] in ("failed", "diverged"):
            options.say(f"{cell.label}  {status['state'].upper()}: {status['message']}")
    options.say(f"{plan.table.name}: " + ", ".join(str(file) for file in files if file.suffix == ".tex"))
    return Outcome(text, "; ".join(_missing([*plan.training, *cells], store, not_measured)))


def _missing(cells: Sequence[Cell], store: Store, not_measured: int) -> list[str]:
    """What is missing of what was asked for, in words. A method that is not for a pair is an answer."""
    states = Counter(state for cell in cells if (state := store.run(cell).state) not in ("done", "refused"))
    named = {state: states.pop(state, 0) for state in ("failed", "diverged")} | {"left out": states.total()}
    counts = ", ".join(f"{count} {name}" for name, count in named.items() if count)
    found = [f"{sum(named.values())} of {counted(len(cells), 'cell')} without a result: {counts}"] if counts else []
    if not_measured:
        found.append(f"{counted(not_measured, 'row')} without a cost")
    return found


def _train(
    waves: Sequence[Sequence[Cell]],
    protocol: Protocol,
    store: Store,
    data_root: Path,
    device: torch.device,
    weights: Callable[[TeacherRef], Path],
    watched: bool = False,
    plugin_files: tuple[Path, ...] = (),
) -> None:
    """Train cells in waves: a later wave may use what an earlier one trained as its teachers."""
    task = get_task(protocol.task)
    data = task.open(data_root, protocol, device)
    count = sum(map(len, waves))
    with Reporter(count, protocol, task.samples(data_root), task.metric) as report, stop_signals() as stopping:
        executor = executors.of(task)
        context = local.Context(
            store,
            protocol,
            data,
            device,
            weights,
            report,
            report.say,
            stopping,
            left_out=report.left_out,
            similarity=watched,
            data_root=data_root,
            plugin_files=plugin_files,
        )
        for wave in waves:
            # A cell whose teacher could not be trained is left out; the others go on.
            taught = [c for c in wave if not (c.teacher and c.teacher.cell) or _is_done(store, c.teacher.cell)]
            for cell in wave:
                if cell not in taught:
                    report.say(f"{cell.label}  LEFT OUT: its teacher is not trained")
                    report.left_out()
            executor.train(taught, context)


def _is_done(store: Store, key: str) -> bool:
    return store.run(key).state == "done"


def train_teacher(
    network: str,
    protocol: Protocol,
    zoo: Zoo,
    data_root: Path,
    output: Path,
    device: torch.device,
    plugins: dict[str, str],
) -> Outcome:
    """Train a network as a teacher; tables under the same protocol find it in the store."""
    networks.check(network)
    store = Store(output)
    cell = teacher_cell(network, protocol, data_root, plugins, zoo)
    if not _is_done(store, cell.key):
        _train([[cell]], protocol, store, data_root, device, lambda ref: zoo.path(zoo.get(ref.entry)))
    status = store.run(cell).status
    if status["state"] != "done":
        return Outcome(missing=f"the teacher {network} {status['state']} in training: {status.get('message', '')}")
    metric = get_task(protocol.task).metric
    return Outcome(f"{network} under {protocol.name}, {protocol.epochs} epochs: {metric} {status['last'][metric]:.2f}")


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C (or SIGTERM) asks the loop to stop after the step; the second ends at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_teachers(plan: Plan, zoo: Zoo, request: Request, options: Options) -> Accuracies:
    """Evaluate every teacher file once per file and copy of the data; returns its metric by network and task.

    Raises:
        UserError: a teacher is not what its entry says, and ``any_teacher`` was not given.
    """
    measured: Accuracies = {}
    used = {(cell.teacher.network, cell.task) for cell in plan.cells.values() if cell.teacher}
    for place, ref in plan.teachers.items():
        if ref.weights and place in used:
            entry, protocol = zoo.get(ref.entry), plan.protocol.on_task(place[1])
            measured[place] = teacher_accuracy(entry, ref, protocol, zoo, request.data_root, options)
            if is_off(entry, measured[place], protocol) and not options.any_teacher:
                raise UserError(
                    f"teacher '{entry.name}' measures {measured[place]:.2f} {get_task(place[1]).metric}, its "
                    f"entry expects {entry.expected:.2f} ({entry.expected_source}); mend the entry or the file, "
                    "or use --any-teacher"
                )
    return measured


def verify_teachers(
    zoo: Zoo, names: Sequence[str], data_root: Path, device: torch.device, say: Callable[[str], None]
) -> Outcome:
    """Measure installed teachers (all, or those named) and say how far each is from its entry.

    Raises:
        UserError: one is not installed.
    """
    entries = [zoo.get(name) for name in names] or [e for e in zoo.entries.values() if zoo.path(e).is_file()]
    if not entries:
        raise UserError(f"no teacher is installed in {zoo.folder}; see: teachers list, teachers add NAME FILE")
    off = []
    for entry in entries:
        usual = usual_protocol(entry.task)
        top1 = executors.of(get_task(entry.task)).accuracy(entry, zoo, usual, data_root, device)
        gap = None if entry.expected is None else top1 - entry.expected
        verdict = "no expected accuracy" if gap is None else f"expected {entry.expected:.2f}, gap {gap:+.2f}"
        say(f"{entry.name:22s} {entry.network:12s} {get_task(entry.task).metric} {top1:.2f}  {verdict}")
        if gap is not None and abs(gap) > TOLERANCE:
            off.append(entry.name)
    if not off:
        return Outcome()
    count = f"{len(off)} of {counted(len(entries), 'teacher')}"
    return Outcome(missing=f"{count} outside +-{TOLERANCE} of what is expected: {', '.join(off)}; mend entry or file")


def teacher_accuracy(
    entry: Teacher, ref: TeacherRef, protocol: Protocol, zoo: Zoo, data_root: Path, options: Options
) -> float:
    """Top-1 of a teacher file, measured once for these weights on this copy of the data."""
    fingerprint = get_task(entry.task).fingerprint(data_root, protocol)
    path = _accuracy_path(ref, fingerprint, protocol, options)
    known = read_json(path)
    if known is None:
        options.say(f"evaluating teacher {entry.name}")
        measure = executors.of(get_task(entry.task)).accuracy
        known = {"entry": entry.name, "value": measure(entry, zoo, protocol, data_root, options.device)}
        write_json(path, known)
    return known["value"]


def _accuracy_path(ref: TeacherRef, fingerprint: str, protocol: Protocol, options: Options) -> Path:
    inputs = test_inputs(protocol)  # images of another size are other images
    key = digest([ref.identity(), fingerprint, protocol.holdout, *([inputs] if inputs else [])])
    return options.output / "teachers" / f"{key[:16]}.json"


def _known_accuracies(plan: Plan, options: Options) -> Accuracies:
    data = plan.data
    refs = {place: ref for place, ref in plan.teachers.items() if ref.weights}
    known = {
        place: read_json(_accuracy_path(ref, data[place[1]], plan.protocol, options)) for place, ref in refs.items()
    }
    return {place: record["value"] for place, record in known.items() if record}


def measure_costs(plan: Plan, store: Store, request: Request, options: Options) -> int:
    """Measure each row in each column alone, in a fresh process, once per machine; returns how many could not be."""
    machine = environment.machine(options.device)
    wanted = {cost_key(cell, machine): cell for cell in plan.cells.values()}
    missing = {
        key: cell
        for key, cell in wanted.items()
        if not store.cost(key).is_file() and store.run(cell).state != "refused"
    }
    if missing:
        options.say(f"measuring the cost of {counted(len(missing), 'row')} alone")
    failed = 0
    with stop_signals() as stopping:
        for key, cell in missing.items():
            if stopping():
                raise Interrupted
            try:
                files, protocol = request.plugin_files, plan.protocol.on_task(cell.task)
                executor = executors.of(get_task(cell.task))
                cost = executor.cost(cell, protocol, request.data_root, options.device, files, store.prepared)
            except UserError as error:  # its row stays without a cost
                options.say(str(error))
                failed += 1
                continue
            facts = {**environment.describe(options.device), "date": today()}
            write_json(store.cost(key), {"label": cell.label, "cost": cost, "environment": facts})
    return failed


def _print_plan(plan: Plan, todo: list[Cell], request: Request, options: Options) -> None:
    say = options.say
    say(f"{plan.table.name}: {plan.table.title}  (preset {plan.preset})")
    for line in plan.lines():
        say(f"  {line}")
    say(f"  rows {', '.join(row.id for row in plan.rows)}; seeds {', '.join(map(str, plan.seeds))}")
    for (network, task), ref in plan.teachers.items():
        origin = (
            f"file {ref.entry}" if ref.entry else "no file installed: trained first (see teachers list, fetch, add)"
        )
        say(f"  teacher {network}{f' on {task}' * (len(plan.tasks) > 1)}: {origin}")
    keys = {cell.key for cell in todo}
    total = estimate(plan, keys, request.data_root, options.device)
    told: set[str] = set()
    for pair in plan.pairs:
        for row in plan.rows:
            cells = [plan.cells[row.id, pair.id, seed] for seed in plan.seeds]
            if told.issuperset(cell.key for cell in cells):  # another metric of cells that are listed
                continue
            told.update(cell.key for cell in cells)
            stored = sum(cell.key not in keys for cell in cells)
            work = total.operations.get(cells[0].key)
            each = "" if work is None else f", {work / 1e15:8.3g} PFLOP each"
            say(f"  {pair.id:26s} {row.id:16s} {len(cells)} cells, {stored} stored{each}")
    for cell in plan.training:
        state = "to train" if cell.key in keys else "stored"
        work = total.operations.get(cell.key)
        say(f"  teacher {cell.student:18s} {state}" + ("" if work is None else f", {work / 1e15:8.3g} PFLOP"))
    span = f"about {duration(total.seconds)}" if total.operations or not keys else "their time is not estimated"
    say(f"{len(keys)} cells to run on {environment.machine(options.device)}: {span}")
    if total.seconds > DAY and "short" in plan.table.presets and plan.preset != "short":
        say(f"that is more than a day; a first look: ./reproduce.sh {plan.source} --preset short")
