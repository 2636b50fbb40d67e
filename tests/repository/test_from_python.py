"""What the suite offers to programs is found by its name, and only then imported."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import benchmarks
from benchmarks.store import exchange

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")


def test_names_lead_to_what_they_say() -> None:
    assert set(benchmarks.__all__) == set(benchmarks._PLACES)
    for name in benchmarks.__all__:
        assert callable(getattr(benchmarks, name)), name
        assert inspect.getdoc(getattr(benchmarks, name)), f"{name} says nothing of itself"
        assert re.search(rf"`{name}\b", PAGE), f"{name} is not in docs/python.md"
    assert benchmarks.merge is exchange.merge and benchmarks.import_ is exchange.import_
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        benchmarks.absent  # noqa: B018
