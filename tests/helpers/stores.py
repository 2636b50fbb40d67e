"""Stores with finished runs and a table that shows them, as training leaves them; nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.common.files import write_json
from benchmarks.common.workspace import Workspace
from benchmarks.store import manifest
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.store.manifest.shapes import Manifest
from benchmarks.store.runs import Run, Store

TABLE_FOLDER = "mine-paper"
FACTS = {"date": "2026-01-02", "commit": "abcdef123456", "machine": "another machine", "versions": {"torch": "2.9"}}
TEACHER = Cell("digits", "d", {"name": "p", "version": 1}, 0.1, "resnet14", "student", 1, {}, 0)


def cell(method: str, seed: int, **changes: Any) -> Cell:
    ref = TeacherRef("resnet14", (0.5,), (0.2,), cell=TEACHER.key)
    return Cell("digits", "d", {"name": "p", "version": 1}, 0.1, "resnet8", method, 1, {}, seed, ref, **changes)


def finish(output: Path, one: Cell, value: float, machine: str = "a machine") -> None:
    """A run as training leaves it."""
    store = Store(output)
    with store.run(one).lock():
        run = store.create(one)
    run.write("student.pt", f"weights {one.key}".encode())
    write_json(run / "environment.json", [{**FACTS, "machine": machine}])
    records = [
        {"epoch": epoch, "metrics": {"top1": value - 1 + epoch}, "losses": {}, "seconds": 1.0} for epoch in (0, 1)
    ]
    run.set_metrics(records)
    run.set_status("done", epoch=1, epochs=1, last={"top1": value}, best={"top1": value}, remarks=[])


def begin(output: Path, one: Cell, epochs: int, checkpoint: bytes = b"state") -> Run:
    """A run that was stopped after so many epochs."""
    run = Store(output).create(one)
    write_json(run / "environment.json", [FACTS])
    run.set_metrics(
        [{"epoch": epoch, "metrics": {"top1": 5.0}, "losses": {}, "seconds": 1.0} for epoch in range(1, epochs + 1)]
    )
    run.write("checkpoint.pt", checkpoint)
    run.set_status("interrupted", epoch=epochs, epochs=9)
    return run


def place(output: Path) -> Workspace:
    """A workspace of the CPU with a store's folder as its output and its data's."""
    return Workspace(device=torch.device("cpu"), output=output, data_root=output)


def shown(*cells: Cell, **changes: Any) -> Manifest:
    column = {
        "key": "a-b", "teacher_network": "a", "student": "b", "lr": 0.1, "metric": "top1", "metric_title": "Top-1",
        "data": "d", "teacher": {"identity": {"cell": TEACHER.key}, "cell": TEACHER.key},
    }  # fmt: skip
    methods = dict.fromkeys(one.method for one in cells)
    return Manifest.model_validate({
        "name": "mine", "title": "Mine", "recipe": "p", "protocol": {"epochs": 1}, "protocol_lines": ["p"], "lr": 0.1,
        "row_order": ["student", "kd", "dkd"], "column_order": ["a-b"], "columns": [column],
        "rows": [{"key": m, "method": m, "title": m.upper(), "family": "logit"} for m in methods],
        "cells": [
            {"row": c.method, "column": "a-b", "seed": c.seed, "key": c.key, "settings": {}, "taught": True,
             "published_settings": True} for c in cells
        ],
        **changes,
    })  # fmt: skip


def table(output: Path, *methods: str, value: float = 70.0) -> Path:
    """A store with a table of finished runs, its teacher, and a run of no table."""
    cells = [cell(method, seed) for method in methods for seed in (0, 1)]
    for one in (TEACHER, *cells):
        finish(output, one, value + one.seed)
    manifest.save(output, TABLE_FOLDER, shown(*cells))
    return output
