"""The driver: plan -> teachers -> groups that share one teacher pass -> store -> costs -> table."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kd_methods import registry
from kd_methods.errors import UserError

from .. import networks
from ..analysis import similarity
from ..common import environment
from ..common.files import digest, read_json, write_json
from ..common.yaml_files import merged
from ..config.protocol import Protocol, load_protocol
from ..config.table_spec import METRICS, Pair, Row, pair_entry, pair_settings
from ..cost.profiling import cost_key
from ..store import manifest
from ..store.cell import Cell, TeacherRef
from ..store.runs import Store, today
from ..tasks import get_task
from ..teachers.zoo import TOLERANCE, Teacher, Zoo
from ..training.loop import Interrupted
from . import executors
from .estimate import estimate
from .executors import local
from .plan import Plan, Request, make, on_task, teacher_cell
from .progress import Reporter, duration

DAY = 86400.0

_USUAL = {
    "imagenet": "imagenet-100",
    "tiny-imagenet": "tiny-imagenet-letkd",
    "images": "cifar100-crd240",
    "text": "glue-ft",
    "detection": "coco-1x",
}
"""The protocol under which a teacher file is verified, by its task, or else by what its network reads."""

Accuracies = dict[tuple[str, str], float]
"""What teacher files measure, by network and task."""


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
    say: Callable[[str], None] = print


def reproduce(request: Request, options: Options) -> str:
    """Run what a table needs and is not in the store, and write the table; returns it as Markdown.

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
        return ""
    store.check_writable()  # fails now rather than after hours
    watched = options.similarity or plan.table.similarity
    accuracies = check_teachers(plan, zoo, request, options) if todo else _known_accuracies(plan, options)
    shown = manifest.save(options.output, plan.stem, describe(plan, zoo, accuracies, options))
    if todo:
        options.say(f"{len(todo)} cells to run, {len(cells) + len(plan.training) - len(todo)} in the store")
        weights = lambda ref: zoo.path(zoo.get(ref.entry))  # noqa: E731
        for task in plan.tasks:
            for protocol, waves in plan.waves([cell for cell in todo if cell.task == task]):
                where = request.data_root, options.device
                _train(waves, on_task(protocol, task), store, *where, weights, watched, request.plugin_files)
    files, text = manifest.render(options.output, plan.stem)
    if options.costs:
        measure_costs(plan, store, request, options)
        files, text = manifest.render(options.output, plan.stem)
    if watched:
        folder = manifest.path(options.output, plan.stem).parent
        for file in similarity.write(shown, store, folder, options.say):
            options.say(str(file))
    for cell in [*plan.training, *cells]:
        status = store.run(cell).status
        if status["state"] in ("failed", "diverged"):
            options.say(f"{cell.label}  {status['state'].upper()}: {status['message']}")
    options.say(f"{plan.table.name}: " + ", ".join(str(file) for file in files if file.suffix == ".tex"))
    return text


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
            executor.run(taught, context)


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
) -> float:
    """Train a network as a teacher and return its top-1; tables under the same protocol find it in the store."""
    networks.check(network)
    store = Store(output)
    cell = teacher_cell(network, protocol, data_root, plugins, zoo)
    if not _is_done(store, cell.key):
        _train([[cell]], protocol, store, data_root, device, lambda ref: zoo.path(zoo.get(ref.entry)))
    status = store.run(cell).status
    if status["state"] != "done":
        raise UserError(f"the teacher {network} {status['state']} in training: {status.get('message', '')}")
    return status["last"][get_task(protocol.task).metric]


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
            entry, protocol = zoo.get(ref.entry), on_task(plan.protocol, place[1])
            measured[place] = teacher_accuracy(entry, ref, protocol, zoo, request.data_root, options)
            if _is_off(entry, measured[place], protocol) and not options.any_teacher:
                raise UserError(
                    f"teacher '{entry.name}' measures {measured[place]:.2f} {get_task(place[1]).metric}, its "
                    f"entry expects {entry.expected:.2f} ({entry.expected_source}); mend the entry or the file, "
                    "or use --any-teacher"
                )
    return measured


def _is_off(entry: Teacher, measured: float | None, protocol: Protocol) -> bool:
    """Whether a teacher measures something else than its entry expects, where that can be said.

    On held-out training images, which it was trained on, its accuracy says nothing, and with images of another size it
    is another one.
    """
    if entry.expected is None or measured is None or abs(measured - entry.expected) <= TOLERANCE:
        return False
    return not protocol.holdout and _test_inputs(protocol) == _test_inputs(_usual(protocol.task))


def verify_teachers(
    zoo: Zoo, names: Sequence[str], data_root: Path, device: torch.device, say: Callable[[str], None]
) -> None:
    """Measure installed teachers (all, or those named) and say how far each is from its entry.

    Raises:
        UserError: one is not installed, or is off by more than the tolerance.
    """
    entries = [zoo.get(name) for name in names] or [e for e in zoo.entries.values() if zoo.path(e).is_file()]
    if not entries:
        raise UserError(f"no teacher is installed in {zoo.folder}; see: teachers list, teachers add NAME FILE")
    off = []
    for entry in entries:
        usual = _usual(entry.task)
        top1 = executors.of(get_task(entry.task)).accuracy(entry, zoo, usual, data_root, device)
        gap = None if entry.expected is None else top1 - entry.expected
        verdict = "no expected accuracy" if gap is None else f"expected {entry.expected:.2f}, gap {gap:+.2f}"
        say(f"{entry.name:22s} {entry.network:12s} {get_task(entry.task).metric} {top1:.2f}  {verdict}")
        if gap is not None and abs(gap) > TOLERANCE:
            off.append(entry.name)
    if off:
        raise UserError(f"outside +-{TOLERANCE} of what is expected: {', '.join(off)}; mend the entry or the file")


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
    inputs = _test_inputs(protocol)  # images of another size are other images
    key = digest([ref.identity(), fingerprint, protocol.holdout, *([inputs] if inputs else [])])
    return options.output / "teachers" / f"{key[:16]}.json"


def _usual(task: str) -> Protocol:
    return load_protocol(_USUAL.get(task) or _USUAL[get_task(task).inputs])


def _test_inputs(protocol: Protocol) -> dict[str, Any]:
    """What becomes of images and texts before a network sees them in evaluation."""
    found: dict[str, Any] = {}
    if protocol.crops:
        found |= protocol.crops.model_dump(include={"size", "test_resize", "interpolation"})
    if protocol.detection:
        found |= protocol.detection.model_dump(include={"test_side", "long_side"})
    if protocol.max_length:
        found |= {"max_length": protocol.max_length, "tokenizer": protocol.tokenizer}
    return found


def _known_accuracies(plan: Plan, options: Options) -> Accuracies:
    data = plan.data
    refs = {place: ref for place, ref in plan.teachers.items() if ref.weights}
    known = {
        place: read_json(_accuracy_path(ref, data[place[1]], plan.protocol, options)) for place, ref in refs.items()
    }
    return {place: record["value"] for place, record in known.items() if record}


def measure_costs(plan: Plan, store: Store, request: Request, options: Options) -> None:
    """Measure each row in each column alone, in a fresh process, once per machine."""
    machine = environment.machine(options.device)
    wanted = {cost_key(cell, machine): cell for cell in plan.cells.values()}
    missing = {
        key: cell
        for key, cell in wanted.items()
        if not store.cost(key).is_file() and store.run(cell).state != "refused"
    }
    if missing:
        options.say(f"measuring the cost of {len(missing)} rows alone")
    with stop_signals() as stopping:
        for key, cell in missing.items():
            if stopping():
                raise Interrupted
            try:
                files, protocol = request.plugin_files, on_task(plan.protocol, cell.task)
                executor = executors.of(get_task(cell.task))
                cost = executor.cost(cell, protocol, request.data_root, options.device, files, store.prepared)
            except UserError as error:  # its row stays without a cost
                options.say(str(error))
                continue
            facts = {**environment.describe(options.device), "date": today()}
            write_json(store.cost(key), {"label": cell.label, "cost": cost, "environment": facts})


def describe(plan: Plan, zoo: Zoo, accuracies: Accuracies, options: Options) -> manifest.Manifest:
    """The plan as the table's manifest."""
    machine = environment.machine(options.device)
    cards = {row.id: registry.card(row.method) for row in plan.rows}
    rows = {row.id: row for row in plan.rows}
    first = plan.seeds[0]

    data = plan.data

    def teacher(pair: Pair) -> dict[str, Any]:
        ref = plan.teacher_of(pair)
        facts: dict[str, Any] = {"identity": ref.identity(), "cell": ref.cell, "entry": ref.entry, "origin": "here"}
        if plan.protocol.teachers_from and ref.cell:
            facts["trained_under"] = _trained_under(plan, ref)
        if ref.entry:
            entry, accuracy = zoo.get(ref.entry), accuracies.get((pair.teacher, plan.protocol_of(pair).task))
            off = _is_off(entry, accuracy, plan.protocol_of(pair))
            facts |= {"origin": entry.origin, "accuracy": accuracy, "off": off}
        return facts

    return {
        "name": plan.table.name,
        "title": plan.table.preset(plan.preset).title or plan.table.title,
        "published": plan.table.published,
        "sources": list(plan.table.sources),
        "quoted": dict(plan.table.quoted),
        "efficiency": plan.table.efficiency
        and {"ours": plan.table.efficiency.row, "against": list(plan.table.efficiency.against)},
        "recipe": plan.protocol.recipe,
        "protocol": plan.protocol.identity(),
        "protocol_lines": list(plan.lines(students=())),
        "lr": plan.protocol.optimizer.lr,
        "deviations": list(plan.protocol.deviations),
        "notes": [
            *plan.notes,
            *_uniform_note(plan),
            *_holdout_note(plan),
            *_unpublished_note(plan),
        ],
        "row_order": [row.id for row in plan.table.preset(plan.preset).methods or ()],
        "column_order": [pair.id for pair in plan.table.preset(plan.preset).pairs or ()],
        "columns": [
            {
                "key": pair.id,
                "teacher_network": pair.teacher,
                "student": pair.student,
                "lr": plan.protocol.lr(pair.student),
                "task": plan.protocol_of(pair).task,
                "metric": (metric := plan.metric_of(pair)),
                "metric_title": METRICS.get(metric, metric),
                "init": pair.init,
                "data": data[plan.protocol_of(pair).task],
                "teacher": teacher(pair),
            }
            for pair in plan.pairs
        ],
        "rows": [
            {
                "key": row.id,
                "method": row.method,
                "title": row.title or cards[row.id].title,
                "family": cards[row.id].family,
                "published": _published_row(row),
                "optimizer": plan.protocol.with_optimizer(row.optimizer).optimizer.line() if row.optimizer else "",
                "our_choice": _our_choice(row.id, plan),
                "student": row.student,
                "init": row.init,
                "defaults": registry.settings(row.method).model_dump(mode="json"),
            }
            for row in plan.rows
        ],
        "cells": [
            {
                "row": r,
                "column": c,
                "seed": s,
                "key": cell.key,
                "settings": cell.settings,
                "published_settings": _has_published_settings(cell, c, rows[r], plan.protocol.recipe),
                "taught": cell.teacher is not None,
            }
            for (r, c, s), cell in plan.cells.items()
        ],
        "costs": [
            {"row": r, "column": c, "key": cost_key(cell, machine)}
            for (r, c, s), cell in plan.cells.items()
            if s == first
        ],
    }


def _holdout_note(plan: Plan) -> list[str]:
    files = [ref.entry for ref in plan.teachers.values() if ref.entry]
    if not (plan.protocol.holdout and files):
        return []
    return [f"the teacher files {', '.join(files)} were trained on the held-out images too"]


def _trained_under(plan: Plan, ref: TeacherRef) -> str:
    """The protocol of a teacher, where it is not the students', and what the teacher began with."""
    own = plan.teacher_protocol
    usual = load_protocol(plan.protocol.teachers_from).epochs
    length = f" ({own.epochs} epochs instead of {usual})" if own.epochs != usual else ""
    start = next((cell.start for cell in plan.training if cell.key == ref.cell), None)
    begun = f" from the ImageNet weights {start.entry}" if start else ""
    return f"{own.name} v{own.version}{length}{begun}"


def _uniform_note(plan: Plan) -> list[str]:
    return ["no settings per pair: a method has the same settings in every column"] * plan.uniform


def _has_published_settings(cell: Cell, pair: str, row: Row, recipe: str) -> bool:
    """Whether a cell runs with what is published for its method and pair, and so may be compared."""
    if row.optimizer and not row.published:
        return False
    # A row that says which published one it repeats brings that one's settings along.
    values = merged(pair_settings(cell.method, pair, recipe), row.settings if row.published else {})
    usual = registry.settings(cell.method, values)
    return cell.settings == usual.model_dump(mode="json")


def _published_row(row: Row) -> str:
    """The row of the published values that this one repeats; none where it trains or sets something of its own."""
    return row.published or ("" if row.student or row.settings else row.method)


def _unpublished_note(plan: Plan) -> list[str]:
    return [] if plan.table.published else ["no published values are known for this table"]


def _our_choice(row: str, plan: Plan) -> list[str]:
    """The settings that no source gives, with their values."""
    cell = plan.cells[row, plan.pairs[0].id, plan.seeds[0]]
    settings = manifest.flat(cell.settings)
    chosen = list(registry.card(cell.method).our_choice)
    for part in dict.fromkeys((cell.method, *cell.method.split("+"))):
        entry = None if plan.uniform else pair_entry(part, plan.pairs[0].id, plan.protocol.recipe)
        if entry and entry.our_choice:
            prefix = "" if part == cell.method else f"{part}."
            chosen += [f"{prefix}{key}" for key in manifest.flat(entry.values)]
    return [f"{key} {settings[key]}" for key in dict.fromkeys(chosen)]


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
