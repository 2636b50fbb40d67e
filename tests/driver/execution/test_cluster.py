"""A table on a Ray cluster of two simulated machines, one of which dies."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.user_folder import PROTOCOL, TABLE

from benchmarks.common.workspace import Workspace
from benchmarks.driver.execution.crew import ALONE, Crew
from benchmarks.driver.planning.plan import Request
from benchmarks.driver.reproduce import Options, reproduce
from benchmarks.store.runs import Run

ray = pytest.importorskip("ray", reason="Ray, the extra [cluster], is not installed")
pytestmark = pytest.mark.slow


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


def test_a_table_on_a_cluster_is_that_of_one_process_though_a_machine_dies(tmp_path: Path, cluster: Any) -> None:
    request, alone = table(tmp_path / "alone", 4)
    assert not reproduce(request, alone, Options(costs=False, crew=ALONE)).missing

    second = cluster.add_node(num_cpus=1)
    request, workspace = table(tmp_path / "cluster", 4)
    said: list[str] = []

    def kill() -> None:
        """The second machine, once some cells have ended and others run."""
        while sum(Run(path).state == "done" for path in runs(workspace)) < 2:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    options = Options(costs=False, crew=Crew(None, cluster=cluster.address))
    outcome = reproduce(request, Workspace(**{**vars(workspace), "say": said.append}), options)
    killer.join(timeout=1)
    assert not killer.is_alive(), "the machine was killed while cells were trained"
    assert not outcome.missing and students(workspace) == students(alone) and len(students(alone)) == 7


def runs(workspace: Workspace) -> list[Path]:
    folder = workspace.output / "runs"
    return list(folder.iterdir()) if folder.is_dir() else []


def test_no_cluster_at_the_address_is_one_line(tmp_path: Path) -> None:
    from kd_methods.errors import UserError

    request, workspace = table(tmp_path, 1)
    with pytest.raises(UserError, match="no Ray cluster answers") as error:
        reproduce(request, workspace, Options(costs=False, crew=Crew(None, cluster="127.0.0.1:1")))
    assert "\n" not in str(error.value)
