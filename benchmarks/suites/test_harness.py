"""What the harness itself costs: the data pipeline, rendering a table from a large store, start-up."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.files import write_json
from benchmarks.cost.profiling import endless, synchronise
from benchmarks.cost.setup import Suite
from benchmarks.report.collect import render
from benchmarks.store import manifest
from benchmarks.store.runs import Store

PAIRS, SEEDS = 5, 5
FACTS = {"date": "2026-01-01", "commit": "abc", "machine": "m", "versions": {"torch": "2"}, "from_epoch": 1}


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


@pytest.fixture(scope="module")
def large_store(tmp_path_factory: pytest.TempPathFactory, rows: int) -> Path:
    """Finished runs, 25 a row, and the manifest of the table that shows them."""
    output = tmp_path_factory.mktemp("large")
    store, cells = Store(output), []
    for row, pair, seed in itertools.product(range(rows), range(PAIRS), range(SEEDS)):
        key = hashlib.sha256(f"{row}/{pair}/{seed}".encode()).hexdigest()
        folder = store.run(key).path
        folder.mkdir(parents=True)
        top1 = {"top1": 70 + row / 100 + seed / 10}
        (folder / "status.json").write_text(json.dumps({"state": "done", "last": top1, "best": top1, "remarks": []}))
        (folder / "environment.json").write_text(json.dumps([FACTS]))
        place = {"row": f"m{row}", "column": f"c{pair}", "seed": seed}
        cells.append({**place, "key": key, "settings": {}, "published_settings": True, "taught": True, "data": ""})
    teacher = {"identity": {}, "cell": "", "entry": "t", "origin": "", "accuracy": 72.0, "off": False}
    measured = {"task": "synthetic", "metric": "top1", "metric_title": "Top-1", "data": "", "init": ""}
    column = {"teacher_network": "t", "student": "s", "lr": 0.05, "teacher": teacher, **measured}
    row_facts = {"family": "logit", "published": "", "optimizer": "", "our_choice": [], "defaults": {}, "student": ""}
    empty = ("protocol_lines", "deviations", "notes", "row_order", "column_order", "sources", "costs")
    texts: dict[str, Any] = {name: [] for name in empty}
    write_json(
        manifest.path(output, "large"),
        {
            **texts,
            "name": "large", "title": "A large table", "published": "", "recipe": "", "protocol": {}, "lr": 0.05,
            "cells": cells,
            "columns": [{"key": f"c{i}", **column} for i in range(PAIRS)],
            "rows": [{"key": f"m{i}", "method": "kd", "title": f"Method {i}", **row_facts} for i in range(rows)],
        },
    )  # fmt: skip
    return output


def test_render_from_a_large_store(benchmark: Any, large_store: Path, rows: int) -> None:
    """`./reproduce.sh render` on a table of 400 rows, 5 columns and 5 seeds: 10,000 runs."""
    benchmark.group = "table"
    files, _ = benchmark.pedantic(render, args=(large_store, "large"), rounds=3, warmup_rounds=1)
    text = next(file for file in files if file.suffix == ".csv").read_text(encoding="utf-8")
    assert text.count("\n") == 1 + PAIRS + rows * PAIRS


@pytest.mark.parametrize("command", ["list", "--help"])
def test_start_up(benchmark: Any, command: str) -> None:
    """A fresh process that answers without importing torch."""
    root = Path(__file__).resolve().parents[2]
    arguments = [sys.executable, "-m", "benchmarks", command]
    benchmark.group = "start-up"
    benchmark.pedantic(
        lambda: subprocess.run(arguments, cwd=root, check=True, capture_output=True), rounds=3, warmup_rounds=1
    )
