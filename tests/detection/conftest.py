"""Fixtures of the tests of detection: drawn shapes, pairs of detectors, a tiny table and what runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.detection import CPU, PROTOCOL, STUDENT, TABLE, TEACHER

from benchmarks import networks
from benchmarks.common.workspace import Workspace
from benchmarks.detection.networks import detectors
from benchmarks.driver.planning.plan import Request
from benchmarks.driver.reproduce import Options, reproduce
from benchmarks.tasks import get_task


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the drawn shapes."""
    root = tmp_path_factory.mktemp("data")
    get_task("shapes").samples(root)
    return root


@pytest.fixture(scope="module")
def pair() -> tuple[detectors.Detector, detectors.Detector]:
    torch.manual_seed(0)
    student, teacher = networks.build_network(STUDENT, 3), networks.build_network(TEACHER, 3)
    return student, teacher.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def dense_pair() -> tuple[detectors.Detector, detectors.Detector]:
    torch.manual_seed(0)
    student, teacher = networks.build_network("gfl_small_r18x4", 3), networks.build_network("gfl_small_r18x2", 3)
    return student, teacher.requires_grad_(False).eval()


@pytest.fixture
def table(tmp_path: Path) -> str:
    (tmp_path / "protocols").mkdir()
    (tmp_path / "tiny.yaml").write_text(PROTOCOL)
    (tmp_path / "table.yaml").write_text(TABLE)
    return str(tmp_path / "table.yaml")


@pytest.fixture
def run(table: str, shapes: Path, tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    said: list[str] = []

    def call(name: str, **request: Any) -> list[str]:
        workspace = Workspace(CPU, shapes, tmp_path / "checkpoints", tmp_path / name, say=said.append)
        reproduce(Request(table, **{"preset": "paper", **request}), workspace, Options(costs=False))
        return said

    yield call
