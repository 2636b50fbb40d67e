"""The inner loop waits for no device: no value of a step is asked for in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.devices import Waits
from helpers.training_bench import TrainingBench, tiny_data

from benchmarks.training.loop import protocol_progress, shared
from benchmarks.training.optimizers import WHOLE


@pytest.mark.parametrize("method", ["student", "kd", "crd"])
def test_a_step_of_the_loop_asks_for_no_value(method: str, tmp_path: Path) -> None:
    bench = TrainingBench(tmp_path, tiny_data())
    student_run = bench.student_run(bench.cells([(method, {})])[0])
    teacher = bench.group().teacher
    student_run.start_epoch(1)
    for step, batch in enumerate(bench.data.batches(0, 1)):
        with Waits() as waits:
            inputs, outputs = shared(batch, WHOLE, teacher, [student_run])
            student_run.step(inputs, outputs, (1, step), protocol_progress(bench.protocol, 1), WHOLE)
        assert not +waits.counts
    with Waits() as waits:  # every twentieth step
        student_run.check_finite()
    assert +waits.counts
