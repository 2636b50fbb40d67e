"""The driver: plan -> teachers -> groups that share one teacher pass -> store -> costs -> table."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kd_methods import registry
from kd_methods.errors import UserError

from . import environment, manifest
from .cell import Cell, TeacherRef
from .estimate import estimate
from .executors import local
from .files import read_json, write_json
from .plan import Plan, Request, make
from .profiling import cost_key, measure
from .progress import Reporter, duration
from .spec import Protocol
from .store import Store, today
from .tasks import get_task
from .teachers import TOLERANCE, Teacher, Zoo
from .training.loop import Interrupted

DAY = 86400.0


@dataclass(frozen=True)
class Options:
    """How a plan is run; what is run is in the :class:`benchmarks.plan.Request`."""

    output: Path
    checkpoints: Path
    device: torch.device
    dry_run: bool = False
    any_teacher: bool = False
    costs: bool = True
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
    todo = [cell for cell in [*plan.training, *cells] if store.run(cell).state not in ("done", "diverged")]
    if options.dry_run or (todo and plan.preset == "paper"):
        _print_plan(plan, todo, request, options)
    if options.dry_run:
        return ""
    write_json(options.output / "last.json", {"table": plan.stem})  # fails now, not after hours, where it cannot write
    accuracies = check_teachers(plan, zoo, request, options) if todo else _known_accuracies(plan, options)
    record = manifest.save(options.output, plan.stem, describe(plan, zoo, accuracies, options))
    if todo:
        options.say(f"{len(todo)} cells to run, {len(cells) + len(plan.training) - len(todo)} in the store")
        run(plan, todo, store, zoo, request, options)
    if options.costs:
        measure_costs(plan, store, request, options)
    files, text = manifest.render(options.output, plan.stem)
    options.say(f"{record['name']}: " + ", ".join(str(file) for file in files if file.suffix == ".tex"))
    return text


def run(plan: Plan, todo: list[Cell], store: Store, zoo: Zoo, request: Request, options: Options) -> None:
    """Train the cells: first the teachers that others depend on, then everything else."""
    data = get_task(plan.protocol.task).open(request.data_root, plan.protocol, options.device)
    samples = get_task(plan.protocol.task).samples(request.data_root)
    with Reporter(len(todo), plan.protocol, samples) as report, stop_signals() as stopping:
        context = local.Context(
            store=store,
            protocol=plan.protocol,
            data=data,
            device=options.device,
            weights=lambda ref: zoo.path(zoo.get(ref.entry)),
            report=report,
            say=report.say,
            stopping=stopping,
        )
        teachers = {cell.key for cell in plan.training}
        local.run([cell for cell in todo if cell.key in teachers], context)
        for cell in plan.training:
            if (state := store.run(cell).status)["state"] != "done":
                raise UserError(f"the teacher {cell.student} {state['state']} in training: {state.get('message', '')}")
        local.run([cell for cell in todo if cell.key not in teachers], context)


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


def check_teachers(plan: Plan, zoo: Zoo, request: Request, options: Options) -> dict[str, float]:
    """Evaluate every teacher file once per file and copy of the data; returns top-1 by network.

    Raises:
        UserError: a teacher is not what its entry says, and ``any_teacher`` was not given.
    """
    measured: dict[str, float] = {}
    for network, ref in plan.teachers.items():
        if ref.weights:
            entry = zoo.get(ref.entry)
            measured[network] = teacher_accuracy(entry, ref, plan.protocol, zoo, request.data_root, options)
            off = entry.expected is not None and abs(measured[network] - entry.expected) > TOLERANCE
            if off and not plan.protocol.holdout and not options.any_teacher:
                raise UserError(
                    f"teacher '{entry.name}' measures {measured[network]:.2f} top-1, its entry expects {entry.expected:.2f} "
                    f"({entry.expected_source}); mend the entry or the file, or accept it with --any-teacher"
                )
    return measured


def teacher_accuracy(
    entry: Teacher, ref: TeacherRef, protocol: Protocol, zoo: Zoo, data_root: Path | None, options: Options
) -> float:
    """Top-1 of a teacher file, measured once for these weights on this copy of the data."""
    fingerprint = get_task(entry.task).fingerprint(data_root)
    path = _accuracy_path(ref, fingerprint, protocol, options)
    known = read_json(path)
    if known is None:
        options.say(f"evaluating teacher {entry.name}")
        known = {"entry": entry.name, "top1": zoo.measure(entry, protocol, data_root, options.device)}
        write_json(path, known)
    return known["top1"]


def _accuracy_path(ref: TeacherRef, fingerprint: str, protocol: Protocol, options: Options) -> Path:
    return options.output / "teachers" / f"{ref.weights[:16]}-{fingerprint[:16]}-{protocol.holdout}.json"


def _known_accuracies(plan: Plan, options: Options) -> dict[str, float]:
    data = next(iter(plan.cells.values())).data
    refs = {network: ref for network, ref in plan.teachers.items() if ref.weights}
    known = {n: read_json(_accuracy_path(ref, data, plan.protocol, options)) for n, ref in refs.items()}
    return {network: record["top1"] for network, record in known.items() if record}


def measure_costs(plan: Plan, store: Store, request: Request, options: Options) -> None:
    """Measure each row in each column alone, in a fresh process, once per machine."""
    machine = environment.machine(options.device)
    wanted = {cost_key(cell, machine): cell for cell in plan.cells.values()}
    missing = {key: cell for key, cell in wanted.items() if not store.cost(key).is_file()}
    if missing:
        options.say(f"measuring the cost of {len(missing)} rows alone")
    with stop_signals() as stopping:
        for key, cell in missing.items():
            if stopping():
                raise Interrupted
            cost = measure(cell, plan.protocol, request.data_root, options.device)
            facts = {**environment.describe(options.device), "date": today()}
            write_json(store.cost(key), {"label": cell.label, "cost": cost, "environment": facts})


def describe(plan: Plan, zoo: Zoo, accuracies: dict[str, float], options: Options) -> manifest.Manifest:
    """The plan as the table's manifest."""
    machine = environment.machine(options.device)
    cards = {row.id: registry.card(row.method) for row in plan.rows}
    first = plan.seeds[0]

    def teacher(network: str) -> dict[str, Any] | None:
        ref = plan.teachers.get(network)
        if ref is None:
            return None
        origin = zoo.get(ref.entry).origin if ref.entry else "trained here"
        facts = {"weights": ref.weights, "cell": ref.cell, "entry": ref.entry, "origin": origin}
        return {**facts, "accuracy": accuracies.get(network)}

    return {
        "name": plan.table.name,
        "title": plan.table.title,
        "metric": plan.table.metric,
        "published": plan.table.published,
        "sources": list(plan.table.sources),
        "recipe": plan.protocol.recipe,
        "protocol": plan.protocol.identity(),
        "protocol_lines": list(plan.protocol.lines()),
        "deviations": list(plan.protocol.deviations),
        "notes": list(plan.notes),
        "data": next(iter(plan.cells.values())).data,
        "row_order": [row.id for row in plan.table.methods],
        "column_order": [pair.id for pair in plan.table.preset(plan.preset).pairs or ()],
        "columns": [
            {
                "key": pair.id,
                "teacher_network": pair.teacher,
                "student": pair.student,
                "teacher": teacher(pair.teacher),
            }
            for pair in plan.pairs
        ],
        "rows": [
            {
                "key": row.id,
                "method": row.method,
                "title": row.title or cards[row.id].title,
                "family": cards[row.id].family,
                "our_choice": list(cards[row.id].our_choice),
                "settings_note": _settings_note(row.id, plan),
            }
            for row in plan.rows
        ],
        "cells": [
            {"row": r, "column": c, "seed": s, "key": cell.key, "settings": cell.settings, "data": cell.data}
            for (r, c, s), cell in plan.cells.items()
        ],
        "costs": [
            {"row": r, "column": c, "key": cost_key(cell, machine)}
            for (r, c, s), cell in plan.cells.items()
            if s == first
        ],
    }


def _settings_note(row: str, plan: Plan) -> str:
    """Settings of a row that differ from the method's defaults, by pair where they differ between pairs."""
    changed: dict[str, list[str]] = {}
    for pair in plan.pairs:
        cell = plan.cells[row, pair.id, plan.seeds[0]]
        defaults = registry.settings(cell.method).model_dump(mode="json")
        differing = ", ".join(f"{k} {v}" for k, v in cell.settings.items() if v != defaults[k])
        if differing:
            changed.setdefault(differing, []).append(pair.id)
    if len(changed) == 1 and len(next(iter(changed.values()))) == len(plan.pairs):
        return next(iter(changed))
    return "; ".join(f"{text} for {', '.join(pairs)}" for text, pairs in changed.items())


def _print_plan(plan: Plan, todo: list[Cell], request: Request, options: Options) -> None:
    say = options.say
    say(f"{plan.table.name}: {plan.table.title}  (preset {plan.preset})")
    for line in plan.protocol.lines():
        say(f"  {line}")
    say(f"  rows {', '.join(row.id for row in plan.rows)}; seeds {', '.join(map(str, plan.seeds))}")
    for network, ref in plan.teachers.items():
        origin = f"file {ref.entry}" if ref.entry else "no file installed: trained first (see teachers list, fetch, add)"
        say(f"  teacher {network}: {origin}")
    keys = {cell.key for cell in todo}
    total = estimate(plan, keys, request.data_root, options.device)
    for pair in plan.pairs:
        for row in plan.rows:
            cells = [plan.cells[row.id, pair.id, seed] for seed in plan.seeds]
            stored = sum(cell.key not in keys for cell in cells)
            peta = total.operations[cells[0].key] / 1e15
            say(f"  {pair.id:26s} {row.id:16s} {len(cells)} cells, {stored} stored, {peta:8.3g} PFLOP each")
    for cell in plan.training:
        stored = "stored" if cell.key not in keys else "to train"
        say(f"  teacher {cell.student:18s} {stored}, {total.operations[cell.key] / 1e15:8.3g} PFLOP")
    say(f"{len(keys)} cells to run on {environment.machine(options.device)}: about {duration(total.seconds)}")
    if total.seconds > DAY and "short" in plan.table.presets and plan.preset != "short":
        say(f"that is more than a day; a first look: ./reproduce.sh {plan.source} --preset short")
