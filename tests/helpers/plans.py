"""A small table on digits as a plan of cells, and teachers for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers.user_folder import PLUGIN

from benchmarks.common.workspace import Workspace
from benchmarks.driver.planning.plan import Plan, Request, make
from benchmarks.networks import build_network
from benchmarks.teachers.zoo import Teacher, Zoo

CPU = torch.device("cpu")

TABLE = """\
name: mine
title: "My table"
pairs: [resnet14-resnet8, wrn_16_1-resnet8, wrn_16_1-wrn_16_1]
methods: [student, kd, dkd, {id: kd-2, method: kd, settings: {temperature: 2}}]
presets:
  paper: {protocol: digits-demo, seeds: [0, 1]}
"""
METHOD = PLUGIN.replace('name="mine"', 'name="plan_mine"')


def plan(table: str, zoo: Zoo, **request: Any) -> Plan:
    changes = {name: request.pop(name) for name in ("epochs", "holdout", "processes") if name in request}
    workspace = Workspace(torch.device("cpu"), zoo.folder, zoo.folder, plugins=request.pop("plugins", {}))
    return make(Request(table=table, changes=changes, **request), workspace)  # type: ignore[arg-type]


def keys(made: Plan) -> dict[tuple[str, str, int], str]:
    return {place: cell.key for place, cell in made.cells.items()}


def teacher_file(folder: Path, network: str, seed: int, num_classes: int = 10) -> Path:
    torch.manual_seed(seed)
    folder.mkdir(exist_ok=True)
    path = folder / f"{network}-{seed}.pth"
    torch.save(build_network(network, num_classes).module.state_dict(), path)
    return path


def entry(name: str, network: str, task: str = "digits") -> Teacher:
    return Teacher(name=name, network=network, task=task, mean=(0.3, 0.3, 0.3), std=(0.35, 0.35, 0.35))
