"""The way from the command line to the first backward pass is short, and leads only downwards."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_rooms import ROOMS

REPO = Path(__file__).parents[2]
MOST = 12
"""Files along the way."""

FOLLOWED = """
import json, os, runpy, sys, traceback
import torch

def backward(*_, **__):
    with open(file_of_the_way, "w") as file:
        json.dump([frame.filename for frame in traceback.extract_stack()], file)
    os._exit(0)

torch.Tensor.backward = backward
file_of_the_way, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
"""
"""The command line, ended by the first backward pass, which writes down through which files it was reached."""


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The project's files through which a table's first backward pass is reached, each time one is entered."""
    folder = tmp_path_factory.mktemp("walk")
    words = ["table2", "--preset", "demo", "--methods", "kd", "--pairs", "resnet56-resnet20", "--seeds", "0"]
    words += ["--workers", "1", "--device", "cpu", "--output", str(folder), "--checkpoints", str(folder)]
    subprocess.run(
        [sys.executable, "-c", FOLLOWED, str(folder / "way.json"), *words],
        cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    files = [Path(name) for name in json.loads((folder / "way.json").read_text())]
    packages = [REPO / "benchmarks", REPO / "kd_methods"]
    entered = [file.relative_to(REPO) for file in files if any(package in file.parents for package in packages)]
    return [file for file, _ in itertools.groupby(entered)]


def test_the_way_to_the_first_backward_pass_is_short(way: list[Path]) -> None:
    assert way[0] == Path("benchmarks/__main__.py")
    assert len(set(way)) <= MOST, "\n".join(map(str, way))


def test_no_file_on_the_way_is_entered_twice(way: list[Path]) -> None:
    assert len(way) == len(set(way)), "\n".join(map(str, way))


def test_the_way_leads_from_room_to_room_downwards(way: list[Path]) -> None:
    rooms = [room for room, _ in itertools.groupby(file.parts[1] for file in way[1:])]
    assert rooms == [room for room in ROOMS if room in rooms]
    assert rooms[0] == "cli" and rooms[-1] == "training"
