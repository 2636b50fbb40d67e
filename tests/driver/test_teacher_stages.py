"""A teacher that is trained by name: where its network is lost or damaged, training goes on from the checkpoint."""

from __future__ import annotations

import pytest
import torch

from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.driver.stages import train_teacher
from benchmarks.store.runs import Run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, list[str], Run]:
    folder, said = tmp_path_factory.mktemp("teacher"), list[str]()
    place = Workspace(torch.device("cpu"), folder, folder / "checkpoints", folder / "results", say=said.append)
    assert not train_teacher("resnet8", load_protocol("digits-demo").changed(epochs=1), place).missing
    (path,) = (place.output / "runs").iterdir()
    return place, said, Run(path)


@pytest.mark.parametrize("how", ["changed", "deleted"])
def test_a_damaged_or_missing_network_is_made_again(trained: tuple[Workspace, list[str], Run], how: str) -> None:
    place, said, run = trained
    file = run.path / "student.pt"
    content = file.read_bytes()
    if how == "deleted":
        file.unlink()
    else:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said.clear()
    outcome = train_teacher("resnet8", load_protocol("digits-demo").changed(epochs=1), place)
    assert not outcome.missing and file.read_bytes() == content
    assert any(str(file) in line for line in said), said
    said.clear()
    assert not train_teacher("resnet8", load_protocol("digits-demo").changed(epochs=1), place).missing
    assert not said, "what is whole is left alone"
