"""A table on a Ray cluster of two simulated machines, one of which dies."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.user_folder import PROTOCOL, TABLE

from benchmarks.common.workspace import Workspace
from benchmarks.driver.execution.crew import ALONE, Crew
from benchmarks.driver.planning.plan import Request
from benchmarks.driver.reproduce import Options, reproduce
from benchmarks.store.runs import Store

ray = pytest.importorskip("ray", reason="Ray, the extra [cluster], is not installed")
pytestmark = pytest.mark.slow

EPOCHS, STEPS = 4, 6
"""Of every cell, and of every epoch: 1,437 images in batches of 256."""


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made
    made.shutdown()


def table(folder: Path, epochs: int) -> tuple[Request, Workspace]:
    (folder / "data").mkdir(parents=True)
    (folder / "one.yaml").write_text(PROTOCOL.replace("epochs: 1", f"epochs: {epochs}"))
    (folder / "tiny.yaml").write_text(TABLE.format(protocol=folder / "one.yaml"))
    places = {"data_root": folder / "data", "checkpoints": folder / "checkpoints", "output": folder / "results"}
    request = Request(str(folder / "tiny.yaml"), "demo", pairs=("resnet14-resnet8",))
    return request, Workspace(torch.device("cpu"), **places)


def students(workspace: Workspace) -> dict[str, str]:
    files = (workspace.output / "runs").glob("*/student.pt")
    return {file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


NOTING = """\
from dataclasses import replace
from pathlib import Path

import ray

from benchmarks.common.events import CellEnded, Stepped
from benchmarks.driver.engines import ENGINES, register_engine

local = ENGINES.get("local")


class Noting:
    def __init__(self, watcher):
        self.watcher = watcher

    def __call__(self, event):
        node = ray.get_runtime_context().get_node_id()
        if isinstance(event, Stepped):
            note(node, event.key, "step", *event.position)
        elif isinstance(event, CellEnded):
            note(node, event.key, event.state, 10**6, 0)  # behind all steps
        self.watcher(event)


def note(*facts):
    with Path({notes!r}).open("a") as file:
        file.write(" ".join(map(str, facts)) + "\\n")


def train(cells, context):
    "A checkpoint after every step."
    local.train(cells, replace(context, watcher=Noting(context.watcher), save_seconds=0.0))


register_engine(replace(local, name="noting", train=train))
"""
"""An engine that writes down which machine makes which step of which cell; it is loaded in the tasks alone."""


class Note(NamedTuple):
    node: str
    key: str
    event: str
    epoch: int
    step: int


def noted(file: Path) -> list[Note]:
    lines = [line.split() for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [Note(node, key, event, int(epoch), int(step)) for node, key, event, epoch, step in lines]


def test_a_table_on_a_cluster_is_that_of_one_process_though_a_machine_dies(
    tmp_path: Path, cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its job goes on elsewhere from the checkpoints: no step is made twice but the last, where it was not saved."""
    request, alone = table(tmp_path / "alone", EPOCHS)
    assert not reproduce(request, alone, Options(costs=False, crew=ALONE)).missing

    second = cluster.add_node(num_cpus=1)
    request, workspace = table(tmp_path / "cluster", EPOCHS)
    notes = tmp_path / "notes"
    notes.touch()
    plugin = tmp_path / "noting.py"
    plugin.write_text(NOTING.format(notes=str(notes)))

    def begun_there() -> set[str]:
        """Cells of which the second machine has made some steps, not all."""
        there = [note for note in noted(notes) if note.node == second.node_id]
        steps = Counter(note.key for note in there if note.event == "step")
        return {key for key, count in steps.items() if count >= 5} - {n.key for n in there if n.event == "done"}

    def kill() -> None:
        while not begun_there():
            time.sleep(0.02)
        cluster.remove_node(second, allow_graceful=False)  # by SIGKILL

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    options = Options(costs=False, crew=Crew(None, cluster=cluster.address))
    outcome = reproduce(request, replace(workspace, plugin_files=(plugin,)), options)
    killer.join(timeout=1)
    assert not killer.is_alive(), "the machine was killed while cells were trained"
    assert not outcome.missing and students(workspace) == students(alone) and len(students(alone)) == 7

    lost, err = begun_there(), capsys.readouterr().err
    assert lost and err.count("a worker was lost (NodeDiedError") == 1, err
    every = noted(notes)
    assert {note.node for note in every} > {second.node_id}, "both machines"
    done = Counter(note.key for note in every if note.event == "done")
    assert {Store(alone.output).run(key).path.name for key in done} == students(alone).keys()
    assert set(done.values()) == {1}, "each cell ended once"
    steps = Counter((note.key, note.epoch, note.step) for note in every if note.event == "step")
    assert Counter(key for key, _, _ in steps) == dict.fromkeys(done, EPOCHS * STEPS), "each step of each cell"
    twice = Counter(key for (key, _, _), count in steps.items() if count > 1)
    assert max(steps.values()) <= 2 and twice.keys() <= lost and max(twice.values(), default=0) <= 1, twice
    for key in lost:
        position = max(note[3:] for note in every if note.key == key and note.node == second.node_id)
        assert min(note[3:] for note in every if note.key == key and note.node != second.node_id) >= position


def test_no_cluster_at_the_address_is_one_line(tmp_path: Path) -> None:
    from kd_methods.errors import UserError

    request, workspace = table(tmp_path, 1)
    with pytest.raises(UserError, match="no Ray cluster answers") as error:
        reproduce(request, workspace, Options(costs=False, crew=Crew(None, cluster="127.0.0.1:1")))
    assert "\n" not in str(error.value)
