"""Shared fixtures: golden values, and the real data sets where they are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

# A pytest that a test starts is a run of its own, though the one it is in may be a worker of another.
os.environ.pop("PYTEST_XDIST_WORKER", None)
# Tests share the cores; those of workers ask for some.
os.environ.setdefault("KDBENCH_WORKERS", "1")

GOLDENS = Path(__file__).parent / "goldens"


torch.set_num_threads(1)  # here too, for fixtures of a wider scope


@pytest.fixture(autouse=True)
def _one_thread():
    """Bit-exact comparisons hold for a fixed number of threads, and files of tests run beside each other."""
    torch.set_num_threads(1)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The libraries of text encoders reach no hub, and keep nothing outside the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read on import


@pytest.fixture(scope="session")
def golden_models() -> dict:
    return json.loads((GOLDENS / "models.json").read_text())["models"]


@pytest.fixture(scope="session")
def golden_losses() -> dict:
    return json.loads((GOLDENS / "losses.json").read_text())


@pytest.fixture(scope="session")
def golden_inputs() -> dict[str, torch.Tensor]:
    with np.load(GOLDENS / "inputs.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data sets: KDBENCH_DATA, or ../shared/data beside the repository."""
    for candidate in (os.environ.get("KDBENCH_DATA"), Path(__file__).parents[2] / "shared" / "data"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("no real data: set KDBENCH_DATA to a folder with cifar100/ and checkpoints/")
