"""Quantities in words."""

from __future__ import annotations

import pytest

from benchmarks.common.units import duration, flops


@pytest.mark.parametrize(
    ("operations", "words"),
    [(0, "0 FLOP"), (1.13e11, "113 GFLOP"), (4.2e15, "4.2 PFLOP"), (9.996e14, "1 PFLOP"), (9.99e14, "999 TFLOP")],
)
def test_arithmetic_has_the_unit_in_which_it_is_read(operations: float, words: str) -> None:
    assert flops(operations) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(12.3, "12 s"), (180, "3 min"), (16200, "4.5 h"), (12 * 86400, "12 days")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
