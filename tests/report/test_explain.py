"""A number is explained: each value with its source, and a command whose plan has the very cell."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers.manifests import FACTS, Lab

import benchmarks.driver.reproduce
from benchmarks.cli.main import cli
from benchmarks.common.console import Outcome
from benchmarks.common.files import write_json
from benchmarks.driver.planning.describe import describe
from benchmarks.driver.planning.plan import Plan, Request, make
from benchmarks.report.explain import Explanation, explain
from benchmarks.report.formats.explanation_text import sparkline, text
from benchmarks.store import manifest
from benchmarks.store.runs import Store
from kd_methods.errors import UserError

PAIR = "resnet14-resnet8"
TABLE = """\
name: mine
title: "My table"
pairs: [resnet14-resnet8, wrn_16_1-resnet8]
methods:
  - student
  - kd
  - {id: kd-hot, method: kd, title: "KD, hot", settings: {temperature: 8}, optimizer: {nesterov: true}}
  - crd+kd
presets:
  paper: {protocol: digits-demo, seeds: [0, 1]}
  other: {protocol: digits-demo, seeds: [0], task: digits32}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = Lab(tmp_path)
    made.table.write_text(TABLE)
    return made


def stored(lab: Lab, **request: Any) -> tuple[Path, Plan]:
    """A store with the runs of a plan, as training leaves them."""
    output = lab.folder / "results"
    plan = make(Request(table=str(lab.table), **request), lab.workspace)
    manifest.save(output, plan.table_folder, describe(plan, lab.zoo, {}, "a machine"))
    store = Store(output)
    for cell in (*plan.training, *plan.cells.values()):
        with store.run(cell).lock():
            run = store.create(cell)
        run.write("student.pt", b"weights")
        write_json(run / "environment.json", [{**FACTS, "device": "cpu", "from_epoch": 1}])
        run.set_metrics([{"epoch": e, "metrics": {"top1": 40.0 + e}, "phase": ""} for e in range(1, 31)])
        run.set_status("done", epoch=30, epochs=30, last={"top1": 70.0}, best={"top1": 70.0}, remarks=[])
    return output, plan


def explained(lab: Lab, row: str, pair: str = PAIR, **request: Any) -> tuple[Explanation, Plan]:
    output, plan = stored(lab, **request)
    return explain(output, plan.table_folder, row, pair, str(lab.table), pytest.fail), plan


def planned_again(lab: Lab, command: str, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The plan of a command, taken as it is typed."""
    asked: list[Request] = []
    monkeypatch.setattr(
        benchmarks.driver.reproduce, "reproduce", lambda request, *_: asked.append(request) or Outcome()
    )
    folders = ["--data-root", str(lab.folder), "--checkpoints", str(lab.zoo.folder), "--device", "cpu"]
    done = CliRunner().invoke(cli, [*shlex.split(command)[1:], *folders])
    assert done.exit_code == 0, (command, done.output, done.exception)
    return make(asked[0], lab.workspace)


@pytest.mark.parametrize(
    ("row", "request_"),
    [
        ("kd", {}),
        ("student", {"preset": "other"}),
        ("kd-hot", {"uniform": True}),
        ("crd+kd", {"changes": {"epochs": 3, "holdout": 100, "precision": "bf16", "accumulate": 2}}),
        ("kd", {"changes": {"processes": 2, "sync_bn": True}}),
        ("kd", {"changes": {"compile": True}}),
        ("kd@ls", {"methods": ("kd@ls",)}),
        ("kd:temperature=2", {"overrides": ("kd.temperature=2",)}),
        ("crd+kd:kd.temperature=2.5", {"overrides": ("crd+kd.kd.temperature=2.5",)}),
    ],
)
def test_the_command_plans_the_same_cells(
    lab: Lab, row: str, request_: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    explanation, plan = explained(lab, row, **request_)
    assert [seed.key for seed in explanation.seeds] == [
        cell.key for place, cell in plan.cells.items() if place[:2] == (row, PAIR)
    ]
    for seed in explanation.seeds:
        again = planned_again(lab, seed.command, monkeypatch)
        assert [cell.key for cell in again.cells.values()] == [seed.key], seed.command


def test_a_pair_that_the_table_does_not_have(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    explanation, _ = explained(lab, "kd", "resnet20-resnet8", pairs=("resnet20-resnet8",))
    again = planned_again(lab, explanation.seeds[1].command, monkeypatch)
    assert [cell.key for cell in again.cells.values()] == [explanation.seeds[1].key]


def sources(values: tuple[Any, ...]) -> dict[str, str]:
    return {value.name: value.source for value in values}


def test_every_value_has_its_source(lab: Lab) -> None:
    explanation, _ = explained(lab, "kd-hot", changes={"epochs": 4})
    by_key = sources(explanation.protocol)
    assert (
        by_key["epochs"] == "command line (--epochs)" and by_key["batch_size"] == by_key["lr"] == "protocol digits-demo"
    )
    assert by_key["optimizer.nesterov"] == "row kd-hot of the table"
    assert by_key["optimizer.weight_decay"] == "protocol digits-demo"
    assert "times 0.1 after epoch" in " ".join(explanation.protocol_lines), "milestones of the epochs that were trained"
    assert all(line in text(explanation) for line in explanation.protocol_lines)
    settings = sources(explanation.settings)
    assert settings["temperature"] == "row kd-hot of the table" and settings["ce"] == "default of the method's card"
    assert {value.name: value.value for value in explanation.settings}["temperature"] == 8.0


def test_settings_of_the_command_line_and_of_pairs(lab: Lab) -> None:
    explanation, _ = explained(lab, "crd+kd:kd.temperature=2", overrides=("crd+kd.kd.temperature=2",))
    settings = sources(explanation.settings)
    assert settings["kd.temperature"] == "command line (--set)" != settings["kd.ce"]
    lab.table.write_text(TABLE.replace("crd+kd", "simkd"))
    explanation, _ = explained(lab, "simkd", methods=("simkd",))
    assert sources(explanation.settings)["beta"].startswith("our choice for this pair: ")
    lab.table.write_text(TABLE.replace("crd+kd", f"{{id: k, method: kd, by_pair: {{{PAIR}: {{ce: 0.3}}}}}}"))
    explanation, _ = explained(lab, "k", methods=("k",))
    assert sources(explanation.settings)["ce"] == "row k of the table"
    lab.table.write_text(TABLE.replace("crd+kd", "simkd"))
    explanation, _ = explained(lab, "simkd", methods=("simkd",), uniform=True)
    assert sources(explanation.settings)["beta"].startswith("default of the method's card")


def test_teacher_runs_and_files_are_told(lab: Lab) -> None:
    explanation, plan = explained(lab, "kd")
    printed = text(explanation)
    seed = explanation.seeds[0]
    assert (seed.state, seed.last, len(seed.curve)) == ("done", 70.0, 30) and seed.here
    teacher = plan.training[0]
    for words in (
        f"trained here: run {teacher.key[:16]} (top1 70.00)", f"key {seed.key}", f"sha256 {seed.sha256}",
        "computed 2026-01-02, commit abcdef123456, a machine, cpu, torch 2.9, from epoch 1",
        "epoch 1 41.00, epoch 30 70.00, best 70.00 in epoch 30", f"again    {seed.command}", "method:kd version",
    ):  # fmt: skip
        assert words in printed, words
    seed.student.unlink()
    assert "its file is not in this store" in text(
        explain(lab.folder / "results", plan.table_folder, "kd", PAIR, str(lab.table))
    )
    assert "none: it learns alone" in text(explained(lab, "student")[0])


def test_what_is_not_there_is_named(lab: Lab) -> None:
    output, plan = stored(lab, pairs=(PAIR,))
    for row, pair, words in (("kdd", PAIR, "did you mean kd"), ("kd", "resnet14-resnet9", f"did you mean {PAIR}")):
        with pytest.raises(UserError, match=words):
            explain(output, plan.table_folder, row, pair, str(lab.table))
    without = explain(output, plan.table_folder, "kd", PAIR)
    assert not without.seeds[0].command and "give its file" in text(without), "the suite has no such table"
    done = CliRunner().invoke(cli, ["explain", str(lab.table), "kd", PAIR, "--output", str(output)])
    assert (
        done.exit_code == 0
        and done.output == text(explain(output, plan.table_folder, "kd", PAIR, str(lab.table))) + "\n"
    )


def test_a_curve_in_one_line() -> None:
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█" and sparkline([5.0]) == "▁" and sparkline([]) == ""
    assert len(sparkline(list(range(1000)))) == 60 and sparkline([*[0.0] * 999, 1.0])[-1] == "█"
