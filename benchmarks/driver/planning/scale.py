"""Tables 1 and 2 in full, counted: cells, bytes, arithmetic, and hours on many GPUs, as docs/scale.md shows them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from kd_methods import registry

from ... import networks
from ...common.workspace import Workspace
from ...config.table_spec import load_table
from ...cost.cards import speed
from ...store.cell import Cell
from ...tasks import get_task
from ..execution.jobs import span
from .estimate import Estimate
from .plan import Plan, Request, make

TABLES, SEEDS, GPUS = ("table1", "table2"), 5, (1, 8, 64, 512)
BYTES = {"`student.pt`": 4, "`checkpoint.pt`": 8}
"""What a finished run keeps for each parameter of its student: it in fp32, and in the checkpoint its momentum, too."""


def page() -> Iterator[str]:
    """The figures as Markdown, line by line; the arithmetic takes minutes of a processor."""
    with tempfile.TemporaryDirectory() as nowhere:
        empty = Path(nowhere)
        where = Workspace(torch.device("cpu"), empty, empty, empty)
        plan = both(where)
        yield from counts(plan)
        yield ""
        yield from hours(plan, where)


def both(where: Workspace, pairs: Sequence[str] = (), methods: Sequence[str] = ()) -> Plan:
    """Both tables in one plan, by default all of their pairs and rows; nothing of it is in the store."""
    tables = [load_table(name).preset("paper") for name in TABLES]
    assert all(table.methods == tables[0].methods and table.protocol == tables[0].protocol for table in tables)
    chosen = tuple(pairs) or tuple(pair.id for table in tables for pair in table.pairs or ())
    request = Request(TABLES[0], methods=tuple(methods), pairs=chosen, seeds=tuple(range(SEEDS)))
    return make(request, where, stated=True)


def counts(plan: Plan) -> Iterator[str]:
    """What there is to do, as the lines of a table; it takes seconds."""
    taught = sum(registry.get(row.method).needs_teacher for row in plan.rows)
    students, teachers = len({pair.student for pair in plan.pairs}), len(plan.training)
    cells, alone = plan.every_cell(), len(plan.rows) - taught
    sizes = Counter(cell.group() for cell in cells if cell not in plan.training).values()
    terms = f"{taught} x {len(plan.pairs)} x {SEEDS} + {alone} x {students} x {SEEDS} + {teachers}"
    parameters = {name: _parameters(name, plan) for name in {cell.student for cell in cells}}
    every = sum(parameters[cell.student] for cell in cells)
    stored = ", ".join(f"{name} {every * size / 1e9:.0f} GB" for name, size in BYTES.items())
    yield from (
        "| | |",
        "| --- | --- |",
        f"| rows, of them with a teacher, without | {len(plan.rows)}, {taught}, {alone} |",
        f"| pairs, their students, their teachers | {len(plan.pairs)}, {students}, {teachers} |",
        f"| cells: {terms} | {len(cells):,} |",
        f"| groups, with so many students each | {len(sizes)}, {min(sizes)} to {max(sizes)} |",
        f"| kept of all runs | {stored} |",
    )


def hours(plan: Plan, where: Workspace) -> Iterator[str]:
    """The arithmetic of every row on every pair, and hours on so many GPUs, as the lines of two tables."""
    cells = plan.every_cell()
    given = speed("1", plan.protocol.precision)
    estimate = Estimate(plan, {cell.key: 1.0 for cell in cells}, where, given)

    def peta(cell: Cell) -> float:
        return (estimate.operations(cell) or 0.0) / 1e15

    first = {place[:2]: peta(cell) for place, cell in plan.cells.items() if place[2] == plan.seeds[0]}
    trained = {place: size for place, size in first.items() if size}
    least, most = (pick(trained, key=lambda place: trained[place]) for pick in (min, max))
    teachers = {cell.student: peta(cell) for cell in plan.training}
    largest = max(teachers, key=lambda name: teachers[name])
    alone = sum(map(peta, cells))
    yield from (
        "| arithmetic | PFLOP |",
        "| --- | ---: |",
        f"| the teachers, of them {largest} | {sum(teachers.values()):,.0f}, {teachers[largest]:,.0f} |",
        f"| the least cell: {least[0]} on {least[1]} | {first[least]:,.1f} |",
        f"| the largest: {most[0]} on {most[1]} | {first[most]:,.0f} |",
        f"| all, each student with a teacher's pass of its own | {alone:,.0f} |",
        "",
        f"Of {len(first)} rows on pairs {len(first) - len(trained)} are n/a, since the method is not for the pair.",
        "",
        "| GPUs | parts of groups | PFLOP with the teachers' passes | hours | of them teachers | GPUs work |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    )
    for gpus in GPUS:
        stages = estimate.parts(gpus)
        ends = [span(stage, gpus) / 3600 for stage in stages]
        work = sum(map(sum, stages))
        yield (
            f"| {gpus} | {len(stages[-1]):,} | {work * given.operations / 1e15:,.0f} | {sum(ends):,.0f} "
            f"| {ends[0]:,.0f} | {work / 3600 / sum(ends) / gpus:.0%} |"
        )


def _parameters(network: str, plan: Plan) -> int:
    task = get_task(plan.protocol.task)
    built = networks.build_network(network, task.num_classes, (3, task.size, task.size))
    return networks.count(built.parameters())
