"""Manifests of small tables, runs as training leaves them, and what is rendered of both; nothing is trained."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.files import write_json
from benchmarks.common.workspace import Workspace
from benchmarks.driver.planning.describe import describe
from benchmarks.driver.planning.plan import Request, make
from benchmarks.networks import build_network
from benchmarks.report.collect import collect, render
from benchmarks.store import manifest
from benchmarks.store.manifest.earlier import upgraded
from benchmarks.store.manifest.shapes import Manifest
from benchmarks.store.runs import Store
from benchmarks.teachers.zoo import Teacher, Zoo

PAIR = "resnet56-resnet20"

OTHER = "resnet110-resnet20"

FACTS = {
    "date": "2026-01-02", "commit": "abcdef123456", "machine": "a machine", "versions": {"torch": "2.9"},
}  # fmt: skip

TABLE = """\
name: mine
title: "My table"
pairs: [resnet14-resnet8, wrn_16_1-resnet8]
methods: [student, kd, dkd]
presets:
  paper: {protocol: digits-demo, seeds: [0, 1]}
"""

Lines = dict[tuple[str, str], dict[str, str]]


class Lab:
    """A table on digits whose manifests are made as the driver makes them; nothing is trained."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = folder / "mine.yaml"
        self.table.write_text(TABLE)
        self.zoo = Zoo(folder / "checkpoints")
        self.workspace = Workspace(torch.device("cpu"), folder, self.zoo.folder)

    def manifest(self, **request: Any) -> Manifest:
        plan = make(Request(table=str(self.table), **request), self.workspace)
        return describe(plan, self.zoo, {}, "a machine")

    def teacher(self, network: str, seed: int) -> None:
        torch.manual_seed(seed)
        file = self.folder / f"{seed}.pth"
        torch.save(build_network(network, 10).module.state_dict(), file)
        mean_std = {"mean": (0.3, 0.3, 0.3), "std": (0.35, 0.35, 0.35)}
        self.zoo.add(Teacher(name=network, network=network, task="digits", **mean_std), file)


def places(shown: Manifest) -> set[tuple[str, str, int]]:
    shown_places = [(cell.row, cell.column, cell.seed) for cell in shown.cells]
    assert len(shown_places) == len(set(shown_places)), "a place is shown twice"
    return set(shown_places)


def note(shown: Manifest, row: str) -> str:
    """What the table says of a row's settings."""
    table = collect(shown, Store(Path("nowhere")))
    return next(line.settings_note for line in table.rows if line.key == row)


def names(shown: Manifest, what: str) -> list[str]:
    return [item.key for item in getattr(shown, what)]


def paper(**changes: Any) -> Manifest:
    """A manifest of table 1 under the paper's protocol with the teachers that the published numbers stand on."""
    facts = {"cell": "", "entry": "resnet56-crd", "origin": "crd", "accuracy": 72.34, "off": False}
    teacher = {"identity": {"weights": "w"}, **facts}
    columns = [{"key": PAIR, "teacher_network": "resnet56", "student": "resnet20", "lr": 0.05, "teacher": teacher}]
    rows = [
        {"key": key, "method": key, "title": title, "family": "logit", "our_choice": [], "defaults": {}}
        for key, title in (("student", "Student"), ("kd", "KD"), ("dkd", "DKD"))
    ]
    cells = [
        {"row": row["key"], "column": PAIR, "seed": seed, "key": f"{row['key']}-{seed}-{'0' * 20}"[:20],
         "settings": {}, "data": "d", "published_settings": True, "taught": row["key"] != "student"}
        for row in rows for seed in (0, 1)
    ]  # fmt: skip
    shown: dict[str, Any] = {
        "name": "table1", "title": "Title", "metric": "top1", "metric_title": "Top-1 accuracy (%)",
        "published": "cifar100.csv",
        "sources": ["RepDistiller", "mdistiller"], "recipe": "cifar100-crd240", "protocol": {"epochs": 240},
        "protocol_lines": ["cifar100-crd240 v1 on cifar100: 240 epochs"], "deviations": [], "notes": [],
        "data": "d", "lr": 0.05,
        "row_order": ["student", "kd", "dkd"], "column_order": [PAIR, OTHER], "columns": columns, "rows": rows,
        "cells": cells, "costs": [],
    }  # fmt: skip
    return Manifest.model_validate(upgraded({**shown, **changes}))


def edited(shown: Manifest, **columns_teacher: Any) -> Manifest:
    """The same with other facts of its columns' teachers."""
    columns = [
        column.model_copy(update={"teacher": column.teacher.model_copy(update=columns_teacher)})
        for column in shown.columns
    ]
    return shown.model_copy(update={"columns": tuple(columns)})


def finish(output: Path, shown: Manifest, values: dict[str, tuple[float, float]]) -> None:
    """Write run directories as training leaves them: (last, best) of a row, the second seed 0.2 higher."""
    store = Store(output)
    for cell in shown.cells:
        if cell.row in values:
            last, best = (value + 0.2 * cell.seed for value in values[cell.row])
            run = store.run(cell.key)
            write_json(run / "environment.json", [FACTS])
            run.set_status("done", epoch=240, epochs=240, last={"top1": last}, best={"top1": best})


def rendered(output: Path, shown: Manifest) -> tuple[Lines, str, str]:
    """(CSV lines by row and pair, Markdown, LaTeX) of a manifest over the runs in ``output``."""
    path = manifest.path(output, "table1-paper")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(shown.model_dump_json())
    files, text, _ = render(output, "table1-paper")
    texts = {file.suffix: file.read_text() for file in files}
    assert texts[".md"] == text
    lines = {(line["row"], line["pair"]): line for line in csv.DictReader(io.StringIO(texts[".csv"]))}
    return lines, text, "\n".join(file.read_text() for file in files if file.suffix == ".tex")


def by_row(files: list[Path]) -> Mapping[str, dict[str, str]]:
    """The lines of the CSV file by row."""
    text = next(file for file in files if file.suffix == ".csv").read_text()
    return {line["row"]: line for line in csv.DictReader(io.StringIO(text))}
