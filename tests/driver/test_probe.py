"""Linear probes of a table's students: which units are probed, and which published value stands beside each."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.analysis import linear_probe
from benchmarks.cli.main import cli
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.driver import probe
from benchmarks.driver.planning.plan import Request, make
from benchmarks.store.runs import Store
from benchmarks.tasks import get_task
from benchmarks.training.group import Group
from benchmarks.training.shared_teacher import SharedTeacher
from benchmarks.training.student_run import StudentRun
from kd_methods.errors import UserError

UNIT = "layer3.0"


@pytest.mark.slow
def test_probe_reads_classes_off_both_sides_of_the_layer(tmp_path: Path):
    paths = ["--output", str(tmp_path), "--checkpoints", str(tmp_path)]
    chosen = ["letkd", "--preset", "demo", "--pairs", "resnet8-resnet14", "--seeds", "0", "--epochs", "2"]
    chosen += ["--methods", "student,letkd1,letkd2"]
    result = CliRunner().invoke(cli, ["probe", *chosen, *paths])
    assert isinstance(result.exception, UserError) and "run the table first" in str(result.exception)
    assert CliRunner().invoke(cli, [*chosen, *paths, "--no-cost"]).exit_code == 0
    result = CliRunner().invoke(cli, ["probe", *chosen, *paths])
    assert result.exit_code == 0, result.exception
    lines = [line.split(",") for line in result.output.splitlines() if line.count(",") == 7][1:]
    accuracies = {(line[0], line[3]): float(line[4]) for line in lines}
    assert set(accuracies) == {("student", UNIT), ("letkd1", UNIT), ("letkd2", UNIT), ("letkd2", "letkd_intermediate")}
    assert all(50 < value <= 100 for value in accuracies.values()), accuracies


def test_published_probes_stand_beside_ours(tmp_path: Path):
    """On a student that was never trained: what is compared is which line gets which published value."""
    table = tmp_path / "mine.yaml"
    table.write_text(
        "extends: letkd-ablation\nname: mine\npresets:\n"
        "  paper: {protocol: digits-demo, seeds: [0], pairs: [resnet56-resnet20]}\n"
    )
    request = Request(table=str(table), methods=("student", "inter-alpha0-pen", "letkd2"))
    workspace = Workspace(torch.device("cpu"), tmp_path, tmp_path, tmp_path)
    store, protocol = Store(tmp_path), load_protocol("digits-demo")
    data = get_task("digits").open(tmp_path, protocol, torch.device("cpu"))
    for cell in make(request, workspace).cells.values():
        teacher = data.build("resnet56").requires_grad_(False).eval()
        shared_teacher = SharedTeacher(teacher, (protocol.mean, protocol.std), protocol)
        student_run = StudentRun(cell, Group(protocol, data, shared_teacher), store.create(cell))
        student_run.records = [{"epoch": 1, "phase": "", "metrics": {"top1": 0.0}}]
        student_run.finish()
    _, file = probe.report(request, workspace)
    lines = list(csv.DictReader(file.open()))
    published = {(line["row"], line["unit"]): line["published"] for line in lines}
    assert published == {
        ("student", "layer3.0"): "",
        ("inter-alpha0-pen", "layer3.0"): "52.71",
        ("letkd2", "layer3.0"): "51.71",
        ("letkd2", "letkd_intermediate"): "56.36",
    }
    reason = "our protocol deviates from the published one; another teacher"
    cell = next(iter(make(request, workspace).cells.values()))
    (store.run(cell) / "student.pt").unlink()  # as after an import without weights
    outcome, _ = probe.report(request, workspace)
    assert outcome.missing == "1 of 3 students without a network in the store" and store.run(cell).state == "done"
    for line in lines:
        assert ("supplement table 4" in line["source"]) == (line["reason"] == reason) == bool(line["published"])


def test_each_column_is_probed_on_the_data_of_its_task(tmp_path: Path):
    table, tasks = tmp_path / "mine.yaml", {"a": "digits", "b": "digits32"}
    pairs = [{"id": id, "teacher": "resnet14", "student": "resnet8", "task": task} for id, task in tasks.items()]
    presets = {"paper": {"protocol": "digits-demo", "seeds": [0]}}
    table.write_text(
        json.dumps({"name": "mine", "title": "M", "pairs": pairs, "methods": ["student"], "presets": presets})
    )
    request, workspace = Request(table=str(table)), Workspace(torch.device("cpu"), tmp_path, tmp_path, tmp_path)
    store, wanted = Store(tmp_path), {}
    for (_, pair, _), cell in make(request, workspace).cells.items():
        protocol = load_protocol("digits-demo").on_task(tasks[pair])
        data = get_task(tasks[pair]).open(tmp_path, protocol, torch.device("cpu"))
        student_run = StudentRun(cell, Group(protocol, data, None), store.create(cell))
        student_run.records = [{"epoch": 1, "phase": "", "metrics": {"top1": 0.0}}]
        student_run.finish()
        network = linear_probe.trained(cell, data, store.run(cell).student())
        wanted[pair] = f"{linear_probe.accuracy(network, UNIT, data):.2f}"
    _, file = probe.report(request, workspace)
    assert {line["pair"]: line["top1"] for line in csv.DictReader(file.open())} == wanted
    assert wanted["a"] != wanted["b"]


def test_detectors_have_no_probe(tmp_path: Path):
    workspace = Workspace(torch.device("cpu"), tmp_path, tmp_path, tmp_path)
    with pytest.raises(UserError, match="table4 is a table of detection; the probe is for tables of images"):
        probe.report(Request(table="table4", preset="demo", methods=("student",)), workspace)
