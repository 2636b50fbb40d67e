"""Options and shared set-up of the benchmark suites: ``pytest benchmarks/ --benchmark-only``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.cli import words

if TYPE_CHECKING:
    from benchmarks.suite import Suite


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
        metafunc.parametrize("pair", words(option("--pairs")))
    if "method" in metafunc.fixturenames:
        from kd_methods import registry

        metafunc.parametrize("method", words(option("--methods")) or registry.available())


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Suite:
    """Protocol, data and device of all measurements of this session."""
    from benchmarks.suite import Suite

    option = request.config.getoption
    return Suite(option("--device"), option("--batch-size"))


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> int:
    """How many steps are timed."""
    return request.config.getoption("--rounds")
