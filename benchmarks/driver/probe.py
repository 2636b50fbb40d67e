"""Linear probes of a table's finished students, beside what is published."""

from __future__ import annotations

import functools
from pathlib import Path

from kd_methods.errors import Damaged, UserError
from kd_methods.strict import Strict

from ..analysis import linear_probe
from ..common.console import Outcome, counted
from ..common.files import csv_text, read_csv, write_text
from ..common.places import PUBLISHED
from ..common.workspace import Workspace
from ..store.runs import Store
from ..tasks import TaskData, get_task
from ..teachers.zoo import Zoo
from .planning.plan import Request, make


def report(request: Request, workspace: Workspace) -> tuple[Outcome, Path]:
    """Probe every finished student of a table; returns the table, with what is missing in it, and the file written.

    The units are the output of the last stage's first block, and what methods inserted right behind it. Where the
    table's ``probe`` has a published value, it stands beside ours, with its source and why it is not comparable, if so.

    Raises:
        UserError: none of the table's cells is finished and has its network in the store.
    """
    output, zoo = workspace.output, Zoo(workspace.checkpoints)
    plan, store = make(request, workspace), Store(output)
    if others := {get_task(task).modality for task in plan.tasks} - {"images"}:
        raise UserError(f"{plan.table.name} is a table of {others.pop()}; the probe is for tables of images")

    @functools.cache
    def data_of(task: str) -> TaskData:
        return get_task(task).open(workspace.data_root, plan.protocol.on_task(task), workspace.device)

    published = read_csv(PUBLISHED / plan.table.probe, PublishedProbe) if plan.table.probe else ()
    known = {(line.row, line.pair, line.unit): (f"{line.value:.2f}", line.source) for line in published}
    reasons = ["our protocol deviates from the published one"] if plan.protocol.deviations else []
    lines, without = [("row", "pair", "seed", "unit", "top1", "published", "source", "reason")], 0
    for (row, pair, seed), cell in plan.cells.items():
        if store.run(cell).state == "done":
            try:
                weights = store.run(cell).student()
            except Damaged as error:
                workspace.say(f"left out: {error}")
                without += 1
                continue
            data = data_of(cell.task)
            network = linear_probe.trained(cell, data, weights)
            for unit in linear_probe.probed(network, data.build(cell.student)):
                accuracy = f"{linear_probe.accuracy(network, unit, data):.2f}"
                value, source = known.get((row, pair, unit), ("", ""))
                other = ["another teacher"] if cell.teacher and not _is_crd(cell.teacher.entry, zoo) else []
                reason = "; ".join([*reasons, *other]) if value else ""
                lines.append((row, pair, str(seed), unit, accuracy, value, source, reason))
    if len(lines) == 1:
        how = "finished with its network in" if without else "finished in"
        raise UserError(f"no cell of {plan.table_folder} is {how} {output}; run the table first")
    file = output / "tables" / plan.table_folder / f"{plan.table.name}-probe.csv"
    text = csv_text(lines)
    write_text(file, text)
    facts = store.facts(cell.key for cell in plan.cells.values())
    finished = sum(facts[cell.key].status["state"] in ("done", "refused") for cell in plan.cells.values())
    of_all = f"of {counted(len(plan.cells), 'student')}"
    missing = [f"{len(plan.cells) - finished} {of_all} not trained to the end"] if finished < len(plan.cells) else []
    missing += [f"{without} {of_all} without a network in the store"] if without else []
    return Outcome(text.rstrip(), "; ".join(missing)), file


class PublishedProbe(Strict):
    """What a source gives for a unit of a row's student on a pair."""

    row: str
    pair: str
    unit: str
    value: float
    source: str


def _is_crd(entry: str, zoo: Zoo) -> bool:
    return bool(entry) and zoo.get(entry).origin == "crd"
