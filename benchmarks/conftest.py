"""Options and shared set-up of the benchmark suites: ``pytest benchmarks/ --benchmark-only``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.cli.options import words

if TYPE_CHECKING:
    from benchmarks.cost.setup import Suite

GROUP = "student,kd,dkd,dist,at,sp,pkt,rkd,fitnet,block_kd.lite"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("knowledge distillation")
    group.addoption("--pairs", default="resnet56-resnet20", help="teacher-student pairs, comma-separated")
    group.addoption("--methods", help="methods, comma-separated; default: all registered")
    group.addoption("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.addoption("--batch-size", default=64, type=int, help="images per training step")
    group.addoption("--rounds", default=3, type=int, help="timed training steps, after two to warm up")
    group.addoption("--rows", default=400, type=int, help="of the table that is rendered, 25 runs in each")
    group.addoption("--group", default=GROUP, help="methods that the loop trains in one group, comma-separated")
    group.addoption("--precisions", default="fp32", help="in which the loop is measured: fp32, tf32, bf16, fp16")
    group.addoption("--compiled", action="store_true", help="the loop with networks compiled by torch, too")
    group.addoption("--loader-workers", default=2, type=int, help="processes that load images for the baseline's loop")
    group.addoption("--task", default="synthetic", help="synthetic (images of CIFAR-100's shape) or cifar100")
    group.addoption("--data-root", default=os.environ.get("KDBENCH_DATA", "data"), help="where cifar100 is")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Without the names of the machine and its kernel, for files of measurements may be published."""
    machine_info.pop("node", None)
    machine_info.pop("release", None)


@pytest.fixture(autouse=True)
def _load(request: pytest.FixtureRequest) -> None:
    """How busy the machine was stands beside each figure: pytest-benchmark compares what it says of the machine."""
    if "benchmark" in request.fixturenames:
        request.getfixturevalue("benchmark").extra_info["load"] = list(os.getloadavg())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    if "pair" in metafunc.fixturenames:
        metafunc.parametrize("pair", words("--pairs", option("--pairs")))
    if "precision" in metafunc.fixturenames:
        metafunc.parametrize("precision", words("--precisions", option("--precisions")))
    if "compiled" in metafunc.fixturenames:
        ways = {"eager": False, "compiled": True} if option("--compiled") else {"eager": False}
        metafunc.parametrize("compiled", ways.values(), ids=ways)
    if "method" in metafunc.fixturenames:
        from kd_methods import registry

        metafunc.parametrize("method", words("--methods", option("--methods")) or registry.available())


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Suite:
    """Protocol, data and device of all measurements of this session."""
    from benchmarks.cost.setup import Suite

    option = request.config.getoption
    return Suite(option("--device"), option("--batch-size"), option("--task"), Path(option("--data-root")))


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> int:
    """How many steps are timed."""
    return request.config.getoption("--rounds")


@pytest.fixture(scope="session")
def group(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Methods of one group."""
    return tuple(words("--group", request.config.getoption("--group")))


@pytest.fixture(scope="session")
def workers(request: pytest.FixtureRequest) -> int:
    """Loader processes of the baseline's loop."""
    return request.config.getoption("--loader-workers")
