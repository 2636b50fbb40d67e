"""What the tests of training share: a bench on their data, and results of cells that were trained alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.training_bench import Result, TrainingBench, tiny_data

from benchmarks.store.cell import Cell
from benchmarks.tasks.images import ImageData


@pytest.fixture(scope="module")
def data() -> ImageData:
    return tiny_data()


@pytest.fixture
def bench(tmp_path: Path, data: ImageData) -> TrainingBench:
    return TrainingBench(tmp_path, data)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> Callable[[Cell], Result]:
    """Results of cells that were trained alone and undisturbed."""
    bench = TrainingBench(tmp_path_factory.mktemp("alone"), data)

    def result(cell: Cell) -> Result:
        torch.manual_seed(123)
        bench.run([cell])
        return Result(bench.store, cell)

    return result
