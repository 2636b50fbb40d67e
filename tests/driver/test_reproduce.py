"""What the driver says of a run as a whole."""

from __future__ import annotations

from benchmarks.driver.reproduce import _missing


def test_what_is_missing_is_counted_by_its_reason() -> None:
    states = ["done", "failed", "diverged", "refused", "missing", "interrupted", "failed"]
    count = "5 of 7 cells without a result: 2 failed, 1 diverged, 2 left out"
    assert _missing(states, 0) == [count]
    assert _missing(["done", "refused"], 1) == ["1 row without a cost"]
    assert _missing(["done", "refused"], 0) == []
