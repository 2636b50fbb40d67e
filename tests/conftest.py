"""Shared fixtures: golden values, and the real data sets where they are at hand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import Call
from helpers.real_data import RealData, below

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


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Runs the command line in this process, away from the user's own folders; returns (exit code, stdout, stderr)."""
    from benchmarks.cli import main as cli

    for name, folder in {"DATA": "data", "CHECKPOINTS": "checkpoints", "OUTPUT": "results"}.items():
        monkeypatch.setenv(f"KDBENCH_{name}", str(tmp_path / folder))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there: a download fails at once

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["python -m benchmarks", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, out, err

    return run


@pytest.fixture(scope="session")
def golden_inputs() -> dict[str, torch.Tensor]:
    with np.load(GOLDENS / "inputs.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="session")
def real_data() -> RealData:
    """What a test needs of the real data sets, in KDBENCH_DATA, by default in ../shared/data beside the repository."""
    return below(Path(os.environ.get("KDBENCH_DATA") or Path(__file__).parents[2] / "shared" / "data"))
