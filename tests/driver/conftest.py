"""What the tests of plans share: a table, a zoo, and a registry that forgets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.plans import TABLE

from benchmarks.teachers.zoo import Zoo
from kd_methods import registry


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(TABLE)
    return str(path)


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path / "checkpoints")


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone afterwards."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    yield
