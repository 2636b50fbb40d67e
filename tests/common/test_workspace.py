"""Where a command works, for processes that work elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.common.workspace import Workspace


def test_folders_are_the_same_from_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a machine of a cluster needs them, whose processes begin in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    named = Path("data"), Path("teachers"), Path("out")
    place = Workspace(torch.device("cpu"), *named, plugin_files=(Path("mine.py"),)).absolute()
    assert (place.data_root, place.checkpoints, place.output) == tuple(tmp_path / folder for folder in named)
    assert place.plugin_files == (tmp_path / "mine.py",)
