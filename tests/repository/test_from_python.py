"""What the suite offers to programs is found by its name, and only then imported."""

from __future__ import annotations

import pytest

import benchmarks
from benchmarks.store import exchange


def test_names_lead_to_what_they_say() -> None:
    assert set(benchmarks.__all__) == set(benchmarks._PLACES)
    for name in benchmarks.__all__:
        assert callable(getattr(benchmarks, name)), name
    assert benchmarks.merge is exchange.merge and benchmarks.import_ is exchange.import_
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        benchmarks.absent  # noqa: B018
