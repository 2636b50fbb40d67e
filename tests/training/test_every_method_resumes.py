"""Every method: killed after an epoch and resumed, it ends in the bits in which it ends undisturbed; so in a group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_bench import (
    ALL,
    COMPOSED,
    COMPOSED_FOR_IMAGES,
    CPU,
    FOR_TRANSFORMERS,
    MIXED,
    Case,
    Result,
    TrainingBench,
    tiny_data,
)
from helpers.watchers import CellEvent

import kd_methods
from benchmarks import tasks
from benchmarks.common.events import Stepped
from benchmarks.config.protocol import load_protocol
from benchmarks.store.cell import Cell
from benchmarks.tasks import get_task

TEXT = [(name, {}) for name in kd_methods.available() if kd_methods.card(name).modality == "text"]
CASES = [*ALL, *COMPOSED_FOR_IMAGES, *((name, {}) for name in FOR_TRANSFORMERS), *TEXT]
SAMPLE = 9
"""By default every so many methods are tested, the others among the slow tests."""


class Killed(BaseException):
    """The end of a process: what it had in memory is lost."""


@dataclass
class Setting:
    """Makes benches on one task; ``alone`` is where cells are trained undisturbed, one by one."""

    bench: Callable[[Path], TrainingBench]
    alone: TrainingBench


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Setting]:
    return {}


@pytest.fixture
def setting(
    settings: dict[str, Setting], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Setting]:
    """By what a method's networks read."""

    def of(kind: str) -> Setting:
        if kind == "text":
            from helpers.text import SMALL_TASK

            monkeypatch.setitem(tasks.TASKS._registered, "small", SMALL_TASK)
        if kind not in settings:
            make = MAKE[kind]()
            settings[kind] = Setting(make, make(tmp_path_factory.mktemp(kind)))
        return settings[kind]

    return of


def _images() -> Callable[[Path], TrainingBench]:
    data = tiny_data()
    return lambda folder: TrainingBench(folder, data)


def _mixed() -> Callable[[Path], TrainingBench]:
    data = tiny_data(protocol=MIXED)
    return lambda folder: TrainingBench(folder, data, MIXED)


def _transformers() -> Callable[[Path], TrainingBench]:
    changes = {"name": "test", "epochs": 2, "recipe_epochs": 60, "holdout": 1300}
    protocol, pair = load_protocol("digits32-demo").model_copy(update=changes), ("timm:test_vit",) * 2
    data = get_task(protocol.task).open(Path(), protocol, CPU)
    return lambda folder: TrainingBench(folder, data, protocol, pair)


def _text() -> Callable[[Path], TrainingBench]:
    from helpers.text import PROTOCOL as OF_TEXTS
    from helpers.text import SMALL_TASK, open_task

    data: Any = open_task(SMALL_TASK)
    return lambda folder: TrainingBench(folder, data, OF_TEXTS, ("bert_l4_h64", "bert_l2_h64"))


MAKE = {"images": _images, "mixed": _mixed, "transformers": _transformers, "text": _text}


def kind_of(name: str) -> str:
    if name in FOR_TRANSFORMERS:
        return "transformers"
    return "text" if kd_methods.card(name).modality == "text" else "images"


def killed_in_the_second_epoch(bench: TrainingBench, cells: Sequence[Cell]) -> None:
    """Its last checkpoints are those at the end of the first one."""

    def report(event: CellEvent) -> None:
        if isinstance(event, Stepped) and event.position >= (2, 2):
            raise Killed

    bench.report = report
    with pytest.raises(Killed):
        bench.run(cells)


def parameters(kind: str = "") -> list[Any]:
    return [
        pytest.param(
            *(case, kind or kind_of(case[0])),
            id=f"{case[0]}{case[1] or ''}",
            marks=[pytest.mark.slow] if number % SAMPLE else [],
        )
        for number, case in enumerate(CASES)
        if not kind or case in [*ALL, *COMPOSED_FOR_IMAGES]
    ]


def test_no_method_is_left_out() -> None:
    """Those for detectors: tests/detection/test_detection_resumes.py."""
    every = [*kd_methods.available(), *COMPOSED]
    assert {name for name in every if kd_methods.card(name).modality != "detection"} == {name for name, _ in CASES}


@pytest.mark.parametrize(("case", "kind"), parameters())
def test_killed_after_an_epoch_and_resumed(
    setting: Callable[[str], Setting], tmp_path: Path, case: Case, kind: str
) -> None:
    where = setting(kind)
    killed = where.bench(tmp_path)
    (cell,) = killed.cells([case])
    killed_in_the_second_epoch(killed, [cell])
    assert torch.load(killed.store.run(cell) / "checkpoint.pt", weights_only=True)["position"] == [2, 0]
    resumed = where.bench(tmp_path)
    torch.manual_seed(5)
    resumed.run([cell])
    torch.manual_seed(6)
    where.alone.run([cell])
    assert 2 * resumed.steps()[cell.label] <= where.alone.steps()[cell.label], "it went on after the first epoch"
    assert Result(resumed.store, cell) == Result(where.alone.store, cell)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "kind"), parameters("mixed"))
def test_so_it_is_with_mixed_images_and_averaged_weights(
    setting: Callable[[str], Setting], tmp_path: Path, case: Case, kind: str
) -> None:
    test_killed_after_an_epoch_and_resumed(setting, tmp_path, case, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixed", "transformers", "text"])
def test_in_a_group_every_cell_ends_as_alone(setting: Callable[[str], Setting], tmp_path: Path, kind: str) -> None:
    """Of images that are not mixed: groups/test_company.py."""
    where = setting(kind)
    group = where.bench(tmp_path)
    of_kind = [case for case in CASES if kind_of(case[0]) == ("images" if kind == "mixed" else kind)]
    cases = of_kind + ([] if kind == "mixed" else [("kd", {}), ("rkd", {})])
    cells = group.cells(cases)
    group.run(cells)
    for cell in cells:
        where.alone.run([cell])
        assert Result(group.store, cell) == Result(where.alone.store, cell), cell.label
