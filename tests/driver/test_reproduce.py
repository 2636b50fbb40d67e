"""What the driver says of a run as a whole."""

from __future__ import annotations

from pathlib import Path

from benchmarks.driver.reproduce import _missing
from benchmarks.store.runs import Store


def test_what_is_missing_is_counted_by_its_reason(tmp_path: Path) -> None:
    store = Store(tmp_path)
    states = {"a": "done", "b": "failed", "c": "diverged", "d": "refused", "e": "", "f": "interrupted", "g": "failed"}
    for key, state in states.items():
        if state:
            store.run(key).add_environment({"commit": "", "machine": "m", "versions": {"torch": "2"}}, 1)
            store.run(key).set_status(state, message="", last={}, best={})
    count = "5 of 7 cells without a result: 2 failed, 1 diverged, 2 left out"
    assert _missing(list(states), store, 0) == [count]  # type: ignore[arg-type]
    assert _missing(["a", "d"], store, 1) == ["1 row without a cost"]  # type: ignore[list-item]
    assert _missing(["a", "d"], store, 0) == []  # type: ignore[list-item]
