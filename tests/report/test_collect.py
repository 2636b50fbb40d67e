"""What a written table says of its cells as a whole."""

from __future__ import annotations

from benchmarks.report.collect import without_result


def test_what_is_missing_is_counted_by_its_reason() -> None:
    states = ["done", "failed", "diverged", "refused", "missing", "interrupted", "failed"]
    assert without_result(states) == "5 of 7 cells without a result: 2 failed, 1 diverged, 2 left out"
    assert without_result(["done", "refused"]) == ""
