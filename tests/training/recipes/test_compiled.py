"""Compiled networks: another way to the same numbers, shared by the cells of a group. (Needs a C++ compiler.)"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.training_bench import FEW, PROTOCOL, TrainingBench, tiny_data

COMPILED = PROTOCOL.model_copy(update={"name": "compiled", "compile": True})


@pytest.mark.slow
def test_a_group_has_one_compiled_pass_for_each_architecture_and_the_losses_of_eager_networks(tmp_path: Path) -> None:
    """Over an epoch they differ by what rounding becomes in its steps."""
    from torch._dynamo.utils import counters

    eager = TrainingBench(tmp_path / "eager", tiny_data())
    bench = TrainingBench(tmp_path / "compiled", tiny_data(protocol=COMPILED), COMPILED)
    counters.clear()
    bench.run(bench.cells(FEW))
    assert counters["stats"]["unique_graphs"] == 2, "the teacher's pass, and one of all students"
    eager.run(eager.cells(FEW))
    for mine, usual in zip(bench.cells(FEW), eager.cells(FEW), strict=True):
        got, wanted = (run.metrics[0]["losses"] for run in (bench.store.run(mine), eager.store.run(usual)))
        assert mine.key != usual.key and got == pytest.approx(wanted, rel=1e-2), mine.label
