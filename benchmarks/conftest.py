"""Options and shared set-up of the benchmark suites: ``pytest benchmarks/ --benchmark-only``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

CARD = "cifar100-crd240"
SUITE_TASK = "synthetic"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("knowledge distillation")
    group.addoption("--pairs", default="resnet56-resnet20", help="teacher-student pairs, comma-separated")
    group.addoption("--methods", default="", help="methods, comma-separated; default: all registered")
    group.addoption("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.addoption("--batch-size", default=64, type=int, help="images per training step")
    group.addoption("--rounds", default=5, type=int, help="timed training steps, after two to warm up")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    if "pair" in metafunc.fixturenames:
        metafunc.parametrize("pair", _words(option("--pairs")))
    if "method" in metafunc.fixturenames:
        from kd_methods import registry

        metafunc.parametrize("method", _words(option("--methods")) or registry.available())


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


class Suite:
    """The protocol, data and device that all measurements of a session share."""

    def __init__(self, config: pytest.Config) -> None:
        from benchmarks.environment import describe
        from benchmarks.environment import device as choose
        from benchmarks.spec import load_protocol
        from benchmarks.tasks import get_task

        usual = load_protocol(CARD)
        update = {"task": SUITE_TASK, "batch_size": config.getoption("--batch-size"), "second_view": "randaugment"}
        self.protocol = usual.model_copy(update=update)
        self.device = choose(config.getoption("--device"))
        self.data = get_task(SUITE_TASK).open(Path(), self.protocol, self.device)
        self.rounds = config.getoption("--rounds")
        self.machine = describe(self.device)

    def cell(self, method: str, pair: str) -> Any:
        """The cell of a method on a pair, with the settings that are published for it."""
        from benchmarks.cell import TeacherRef
        from benchmarks.plan import make_cell
        from benchmarks.spec import pair_settings
        from kd_methods import registry

        teacher, _, student = pair.partition("-")
        needed = registry.get(method).needs_teacher
        ref = TeacherRef(teacher, self.protocol.mean, self.protocol.std, weights="none") if needed else None
        values = dict(pair_settings(method, pair, CARD))
        return make_cell(self.protocol, "synthetic", method, student, 0, ref, values, {})


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Suite:
    return Suite(request.config)
