"""What is measured of a step: loading by processes that run ahead, and memory above what was there before."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.cost.measuring import loading_seconds, peak_memory


class Bursts:
    """Data whose batches come in rounds: each of four processes has one ready at the same moment."""

    device, info = torch.device("cpu"), SimpleNamespace(num_samples=400)

    def __init__(self, workers: int, seconds: float) -> None:
        self.workers, self.seconds, self.ended, self.clock = workers, seconds, 0, 0.0

    def batches(self, seed: int, epoch: int) -> Iterator[Any]:
        try:
            for number in range(100):
                if number % max(self.workers, 1) == 0:
                    self.clock += self.seconds
                yield EmptyBatch()
        finally:
            self.ended += 1


class EmptyBatch:
    def __len__(self) -> int:
        return 4

    def student(self) -> None:
        pass


@pytest.mark.parametrize(("workers", "seconds"), [(4, 0.08), (0, 0.02)])
def test_the_rate_of_loading_is_that_of_all_batches_not_of_the_usual_wait(
    workers: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: Any = Bursts(workers, seconds)
    monkeypatch.setattr("time.perf_counter", lambda: data.clock)
    assert loading_seconds(data, 4, 2, 8) == pytest.approx(0.02)
    assert data.ended == 1, "the processes are not left to compete with what is measured next"


def test_a_data_set_on_the_device_is_no_part_of_a_step_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated = {"now": 1000, "peak": 5000}
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: allocated["now"])
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: allocated["peak"])
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda device: 8000)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: allocated.update(peak=allocated["now"]))
    device = torch.device("cuda")
    with peak_memory(device) as whole:
        allocated.update(now=1300, peak=1700)
    with peak_memory(device, whole["idle"]) as section:
        allocated.update(peak=1500)
    assert (whole["bytes"], section["bytes"], whole["idle"]) == (700, 500, 1000)
    assert whole["kind"] == "CUDA allocated above idle"
