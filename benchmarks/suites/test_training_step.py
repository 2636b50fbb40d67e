"""What a training step of each method costs: time by section, memory, parameters, FLOPs; its student's inference.

pytest benchmarks/suites/test_training_step.py --benchmark-only --benchmark-json costs.json
./reproduce.sh table6 costs.json
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cost.measuring import WARM_UP, Bench, measure, synchronise
from benchmarks.cost.setup import Suite
from benchmarks.networks import count, macs
from kd_methods import registry
from kd_methods.errors import UserError

from ..common.workspace import Workspace

SPLIT_ROUNDS = 2
LARGE = 256
REFERENCE = "kd"


@pytest.fixture
def bench(suite: Suite, method: str, pair: str) -> Bench:
    return made(suite, pair, method)


def made(suite: Suite, pair: str, method: str) -> Bench:
    """Or a skip where a method is not made for the pair."""
    try:
        return suite.bench(pair, method)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def references(suite: Suite) -> Callable[[str], Bench]:
    """The reference method on a pair, set up once."""
    return functools.cache(lambda pair: suite.bench(pair, REFERENCE))


@pytest.fixture(scope="session")
def plain() -> set[tuple[str, str]]:
    """(method, pair) of those that are known to deploy the plain student."""
    return set()


def test_training_step(
    benchmark: Any,
    suite: Suite,
    bench: Bench,
    method: str,
    pair: str,
    rounds: int,
    references: Callable[[str], Bench],
    plain: set[tuple[str, str]],
) -> None:
    """One step with everything that belongs to it, the batch's fetching included; memory in a process of its own.

    It takes turns with a step of the reference: machines slow down and speed up within minutes, and two steps in a row
    see the same machine.
    """
    reference, times = references(pair), list[float]()

    def step() -> None:
        bench.step()
        synchronise(suite.device)

    for _ in range(WARM_UP):
        step()
    benchmark.group = f"training step, {pair}"
    benchmark.pedantic(step, setup=lambda: times.append(reference.seconds(0, 1)), rounds=rounds)
    size = suite.protocol.batch_size
    student_run = bench.student_run
    shared, of_method = bench.operations()
    card = registry.card(method)
    size_of_student = count(suite.data.build(student_run.cell.student).module.parameters())
    place = Workspace(suite.device, suite.data_root, output=Path())
    cost = measure(student_run.cell, suite.protocol, place, warm_up=1, timed=1)
    if not cost.extra_inference_params:
        plain.add((method, pair))
    benchmark.extra_info.update(
        kind="training step",
        method=method,
        title=card.title,
        family=card.family,
        pair=pair,
        batch_size=size,
        split=bench.split(SPLIT_ROUNDS),
        teacher_operations=shared,
        own_operations=of_method,
        student_params=size_of_student,
        extra_train_params=cost.extra_train_params,
        extra_inference_params=cost.extra_inference_params,
        first_phases=cost.first_phases,
        memory={
            "bytes": cost.peak_memory_bytes,
            "reserved": cost.reserved_memory_bytes,
            "kind": cost.memory_kind,
            "by_part": cost.memory_by_part,
        },
        machine=suite.machine,
    )
    if benchmark.stats is not None:  # None with --benchmark-disable
        own_times = benchmark.stats.stats.data
        # The reference is beside itself: its ratio is 1 in every turn.
        beside = own_times if method == REFERENCE else times
        benchmark.extra_info.update(turns=list(zip(beside, own_times, strict=True)))


@pytest.mark.parametrize("batch", [1, LARGE])
def test_inference(
    benchmark: Any, suite: Suite, method: str, pair: str, batch: int, rounds: int, plain: set[tuple[str, str]]
) -> None:
    """A forward pass of what is deployed. Most methods deploy the plain student, which is measured once."""
    if method != "student" and (method, pair) in plain:
        pytest.skip("deploys the plain student")
    bench = made(suite, pair, method)
    deployed = bench.student_run.deployed.eval()
    x = torch.zeros(batch, *suite.data.build(bench.student_run.cell.student).input_shape, device=suite.device)
    benchmark.group = f"inference, batch {batch}, {pair}"

    def forward() -> None:
        with torch.no_grad():
            deployed(x)
        synchronise(suite.device)

    benchmark.pedantic(forward, rounds=20 if batch == 1 else rounds, warmup_rounds=2)
    benchmark.extra_info.update(
        kind="inference",
        method=method,
        pair=pair,
        batch_size=batch,
        macs=macs(deployed, x[:1]),
        machine=suite.machine,
    )
