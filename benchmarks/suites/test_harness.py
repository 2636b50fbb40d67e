"""What the harness itself costs: the data pipeline, rendering a table from a large store, start-up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common import environment
from benchmarks.common.workspace import Workspace
from benchmarks.cost.measuring import endless, synchronise
from benchmarks.cost.setup import Suite
from benchmarks.driver.planning.describe import describe
from benchmarks.driver.planning.plan import Request, make
from benchmarks.report.collect import render
from benchmarks.store import manifest
from benchmarks.store.runs import Store
from benchmarks.teachers.zoo import Zoo

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [f"resnet14-{student}" for student in ("resnet8", "wrn_16_1", "resnet14", "resnet20", "resnet32")]
SEEDS = 5


@pytest.mark.parametrize("views", [1, 2])
def test_data_pipeline(benchmark: Any, suite: Suite, views: int) -> None:
    """Augmented and normalised batches as the loop fetches them, with one view of each image or two."""
    batches = endless(suite.data, suite.protocol.batch_size)

    def fetch() -> None:
        next(batches).student(views)
        synchronise(suite.device)

    benchmark.group = "data pipeline"
    benchmark.pedantic(fetch, rounds=30, warmup_rounds=3)
    benchmark.extra_info.update(kind="data pipeline", batch_size=suite.protocol.batch_size, machine=suite.machine)


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> int:
    """Rows of the large table."""
    return request.config.getoption("--rows")


TABLE = """\
name: large
title: A large table
pairs: [{pairs}]
methods:
{rows}
presets:
  paper: {{protocol: digits-demo, seeds: [{seeds}]}}
"""
ROW = "  - {{id: m{i}, title: Method {i}, method: kd, settings: {{temperature: {i}}}}}"


@pytest.fixture(scope="module")
def large_store(tmp_path_factory: pytest.TempPathFactory, rows: int) -> Path:
    """A table with finished runs for all its cells, 25 a row, as training leaves them but for their weights."""
    folder = tmp_path_factory.mktemp("large")
    texts = {"pairs": ", ".join(PAIRS), "rows": "\n".join(ROW.format(i=i + 1) for i in range(rows))}
    (folder / "large.yaml").write_text(TABLE.format(**texts, seeds=", ".join(map(str, range(SEEDS)))))
    workspace = Workspace(torch.device("cpu"), folder / "data", folder / "checkpoints", folder / "results")
    plan = make(Request(str(folder / "large.yaml")), workspace)
    store, facts = Store(workspace.output), environment.describe(workspace.device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        for i, cell in enumerate([*plan.training, *plan.cells.values()]):
            run = store.create(cell)
            run.add_environment(facts, 1)
            top1 = {"top1": 70 + i % 97 / 10}
            run.set_metrics([{"epoch": epoch, "metrics": top1, "losses": {"task": 1.0}} for epoch in range(1, 31)])
            run.write("student.pt", b"")
            run.set_status("done", epoch=30, epochs=30, last=top1, best=top1, remarks=[])
        manifest.save(workspace.output, plan.table_folder, describe(plan, Zoo(workspace.checkpoints), {}, "a machine"))
    return folder


@pytest.mark.parametrize("index", ["no index", "index"])
@pytest.mark.parametrize("command", ["render", "run again", "dry run"])
def test_large_store(benchmark: Any, large_store: Path, rows: int, command: str, index: str) -> None:
    """A table of 400 rows, 5 columns and 5 seeds, 10,000 runs, in a fresh process: all are in the store already."""
    places = ["--output", "results", "--data-root", "data", "--checkpoints", "checkpoints", "--device", "cpu"]
    arguments = {
        "render": ["render", "large.yaml", *places[:2]],
        "run again": ["large.yaml", *places, "--no-cost"],
        "dry run": ["large.yaml", *places, "--dry-run"],
    }[command]

    render(large_store / "results", "large-paper")
    if index == "no index":
        (large_store / "results" / "index.sqlite").unlink(missing_ok=True)

    def call() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", *arguments],
            cwd=large_store, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    benchmark.group = "table"
    said = benchmark.pedantic(call, rounds=1)
    if command == "dry run":
        assert "0 cells to run" in said
    else:
        text = (large_store / "results" / "tables" / "large-paper" / "large.csv").read_text(encoding="utf-8")
        assert text.count("\n") == 1 + len(PAIRS) + rows * len(PAIRS) and "to run" not in said


@pytest.mark.parametrize("command", ["list", "--help"])
def test_start_up(benchmark: Any, command: str) -> None:
    """A fresh process that answers without importing torch."""
    arguments = [sys.executable, "-m", "benchmarks", command]
    benchmark.group = "start-up"
    benchmark.pedantic(
        lambda: subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True), rounds=3, warmup_rounds=1
    )
