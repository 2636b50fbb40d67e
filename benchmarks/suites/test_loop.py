"""The loop beside the field's usual one and beside what the machine can do, and what a group of cells holds in memory.

pytest benchmarks/suites/test_loop.py --benchmark-only --pairs resnet56-resnet20 --precisions fp32,bf16
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.cost.measuring import synchronise
from benchmarks.cost.setup import Suite
from benchmarks.suites import machine_limits as limits
from benchmarks.suites.baseline_loop import BaselineLoop

ALONE = "kd"
STEPS, GROUP_STEPS = 10, 2
"""Steps in each turn, so many that the three loops have about the same time."""


@contextmanager
def loading(loop: BaselineLoop) -> Iterator[Callable[[], object]]:
    """Steps of the baseline, whose loader's processes live as long as the context."""
    batches = loop.batches()
    try:
        yield lambda: loop.step(*next(batches))
    finally:
        batches.close()


def test_loop(
    benchmark: Any,
    suite: Suite,
    pair: str,
    precision: str,
    compiled: bool,
    group: tuple[str, ...],
    workers: int,
    rounds: int,
) -> None:
    """Seconds per cell and step of the baseline in fp32, of ours alone and in a group, in turns: machines are noisy."""
    suite = suite.computing(precision, compiled)
    baseline = BaselineLoop(suite.cell(ALONE, pair), suite.protocol, suite.data, suite.teacher(pair), workers)
    alone, together = suite.bench(pair, ALONE), suite.bench(pair, *group)

    def seconds(step: Callable[[], object], count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            step()
        synchronise(suite.device)
        return (time.perf_counter() - start) / count

    turns: list[dict[str, float]] = []
    with loading(baseline) as theirs:
        for step in (theirs, alone.step, together.step):
            seconds(step, 2)
        for _ in range(rounds):
            rates = limits.fastest(suite.device)
            turns.append(
                {
                    "baseline": seconds(theirs, STEPS),
                    "alone": seconds(alone.step, STEPS),
                    "group": seconds(together.step, GROUP_STEPS) / len(group),
                    "fastest": max(rates.values()),
                }
            )
    benchmark.group = f"loop, {pair}"
    benchmark.pedantic(together.step, rounds=1)
    needed = limits.needed(alone)
    benchmark.extra_info.update(
        kind="loop",
        pair=pair,
        precision=precision,
        compiled=compiled,
        batch_size=suite.protocol.batch_size,
        task=suite.data.protocol.task,
        method=ALONE,
        group=list(group),
        loader_processes=workers,
        turns=turns,
        ratios={name: _spread([turn["baseline"] / turn[name] for turn in turns]) for name in ("alone", "group")},
        operations=needed,
        share_of_fastest=_spread([needed / turn["alone"] / turn["fastest"] for turn in turns]),
        fastest_fp32=rates,  # of the last turn
        operators=limits.operators(alone),
        machine=suite.machine,
    )


def _spread(values: list[float]) -> list[float]:
    """Least, median and greatest."""
    return [min(values), statistics.median(values), max(values)]


def test_group_memory(benchmark: Any, suite: Suite, pair: str, group: tuple[str, ...]) -> None:
    """A group holds the teacher with its kept outputs, its cells, and the activations of one student at a time."""
    bench = suite.bench(pair, *group)
    memory = limits.memory(bench)
    benchmark.group = f"loop, {pair}"
    benchmark.pedantic(bench.step, rounds=1)
    benchmark.extra_info.update(
        kind="group memory",
        pair=pair,
        group=list(group),
        batch_size=suite.protocol.batch_size,
        bytes={**vars(memory), "bound": memory.bound},
        machine=suite.machine,
    )
    assert memory.peak <= memory.bound, "something of a cell outlives its step"
