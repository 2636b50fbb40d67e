"""How well the classes can be read off inner features of trained students: pooled features and a linear classifier.

Supplement table 4 of letKD (arXiv 2309.02843) compares the input and the output of its intermediate layer so.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

import kd_methods
from kd_methods.errors import UserError

from ..common.console import Outcome, counted
from ..common.files import csv_text, read_csv, write_text
from ..common.weights import load_weights
from ..common.yaml_files import TABLES, Strict
from ..driver.plan import Request, make
from ..networks import NetworkView
from ..networks.network import TEACHER_TAIL
from ..store.cell import Cell
from ..store.runs import Store
from ..tasks import TaskData, get_task
from ..teachers.zoo import Zoo

BATCH = 250


def report(request: Request, zoo: Zoo, output: Path, device: torch.device) -> tuple[Outcome, Path]:
    """Probe every finished student of a table; returns the table, with what is missing in it, and the file written.

    The units are the output of the last stage's first block, and what methods inserted right behind it. Where the
    table's ``probe`` has a published value, it stands beside ours, with its source and why it is not comparable, if so.

    Raises:
        UserError: none of the table's cells is finished.
    """
    plan, store = make(request, zoo), Store(output)
    if "text" in {get_task(task).inputs for task in plan.tasks}:
        raise UserError(f"{plan.table.name} is a table of texts; the probe is for tables of images")
    data = get_task(plan.protocol.task).open(request.data_root, plan.protocol, device)
    published = read_csv(TABLES / "published" / plan.table.probe, PublishedProbe) if plan.table.probe else ()
    known = {(line.row, line.pair, line.unit): (f"{line.value:.2f}", line.source) for line in published}
    reasons = ["our protocol deviates from the published one"] * bool(plan.protocol.deviations)
    lines = [("row", "pair", "seed", "unit", "top1", "published", "source", "reason")]
    for (row, pair, seed), cell in plan.cells.items():
        if store.run(cell).state == "done":
            network = trained(cell, data, store)
            for unit in probed(network, data.build(cell.student)):
                found = f"{accuracy(network, unit, data):.2f}"
                value, source = known.get((row, pair, unit), ("", ""))
                other = ["another teacher"] * bool(cell.teacher and not _is_crd(cell.teacher.entry, zoo))
                reason = "; ".join([*reasons, *other]) if value else ""
                lines.append((row, pair, str(seed), unit, found, value, source, reason))
    if len(lines) == 1:
        raise UserError(f"no cell of {plan.stem} is finished in {output}; run the table first")
    file = output / "tables" / plan.stem / f"{plan.table.name}-probe.csv"
    text = csv_text(lines)
    write_text(file, text)
    finished = sum(store.run(cell).state in ("done", "refused") for cell in plan.cells.values())
    missing = f"{len(plan.cells) - finished} of {counted(len(plan.cells), 'student')} not trained to the end"
    return Outcome(text.rstrip(), missing if finished < len(plan.cells) else ""), file


class PublishedProbe(Strict):
    """What a source gives for a unit of a row's student on a pair."""

    row: str
    pair: str
    unit: str
    value: float
    source: str


def _is_crd(entry: str, zoo: Zoo) -> bool:
    return bool(entry) and zoo.get(entry).origin == "crd"


def trained(cell: Cell, data: TaskData, store: Store) -> NetworkView:
    """The network of a finished cell as it was trained, with its weights."""
    student = data.build(cell.student)
    teacher = data.build(cell.teacher.network).requires_grad_(False).eval() if cell.teacher else None
    method = kd_methods.build(cell.method, student, teacher, data.info, **cell.settings).to(data.device)
    network = method.adapt(student).to(data.device).eval()
    method.deployed(network).load_state_dict(load_weights(store.run(cell) / "student.pt"))
    assert isinstance(network, NetworkView)
    return network


def probed(network: NetworkView, plain: NetworkView) -> list[str]:
    """The output of the last stage's first block, and those of the parts inserted right behind it."""
    entry = network.layout.entry
    after = network.units[network.units.index(entry) + 1 :]
    behind = list(
        itertools.takewhile(lambda unit: unit not in plain.units and not unit.startswith(TEACHER_TAIL), after)
    )
    return [entry, *(unit for unit in behind if isinstance(network.shape(unit)[0], int))]


def accuracy(network: NetworkView, unit: str, data: TaskData) -> float:
    """Test accuracy (%) of linear discriminant analysis on the unit's globally averaged features."""
    train, labels = _features(network, unit, data, test=False)
    test, wanted = _features(network, unit, data, test=True)
    found = LinearDiscriminantAnalysis().fit(train.numpy(), labels.numpy()).predict(test.numpy())
    return 100 * float((found == wanted.numpy()).mean())


def _features(network: NetworkView, unit: str, data: TaskData, test: bool) -> tuple[Tensor, Tensor]:
    features, labels = [], []
    for part in torch.arange(data.test_samples if test else data.info.num_samples).split(BATCH):
        batch = data.clean(part, test).student()
        with torch.no_grad():
            x = network(batch.inputs, at=(unit,), fields=())[unit]
        features.append((x.mean((2, 3)) if x.dim() == 4 else x.mean(1) if x.dim() == 3 else x).cpu())
        labels.append(batch.labels.cpu())
    return torch.cat(features), torch.cat(labels)
