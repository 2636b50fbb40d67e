"""Compiled networks: another way to the same numbers, shared by the cells of a group. (Needs a C++ compiler.)"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.training_bench import FEW, PROTOCOL, Case, Result, TrainingBench, tiny_data

CASES: list[Case] = [*FEW, ("kd", {})]
COMPILED = PROTOCOL.model_copy(update={"name": "compiled", "compile": True})


@pytest.mark.slow
def test_a_group_has_one_compiled_pass_for_each_architecture_and_the_losses_of_eager_networks(tmp_path: Path) -> None:
    """Losses within what rounding becomes over two epochs; a cell has the same bits alone, whatever the others need."""
    from torch._dynamo.utils import counters

    eager = TrainingBench(tmp_path / "eager", tiny_data())
    bench = TrainingBench(tmp_path / "compiled", tiny_data(protocol=COMPILED), COMPILED)
    alone = TrainingBench(tmp_path / "alone", tiny_data(protocol=COMPILED), COMPILED)
    counters.clear()
    bench.run(bench.cells(CASES))
    assert counters["stats"]["unique_graphs"] == 2, "the teacher's pass, and one of all students"
    eager.run(eager.cells(CASES))
    for mine, usual in zip(bench.cells(CASES), eager.cells(CASES), strict=True):
        assert mine.key != usual.key
        for got, wanted in zip(Result(bench.store, mine).records, Result(eager.store, usual).records, strict=True):
            assert got["losses"] == pytest.approx(wanted["losses"], rel=1e-2), mine.label
    cell = bench.cells([("kd", {})])
    alone.run(cell)
    assert Result(alone.store, cell[0]) == Result(bench.store, cell[0])
