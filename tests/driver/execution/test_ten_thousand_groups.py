"""The harness without training: the real plan, groups, scheduler and store of 10,000 groups, on places that die.

Time is virtual; what a group would take is drawn. Of the machine only the harness's own time passes.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common import environment
from benchmarks.common.process.children import Ended
from benchmarks.common.workspace import Workspace
from benchmarks.driver.execution import schedule
from benchmarks.driver.execution.jobs import Finished, Job, divided
from benchmarks.driver.execution.relay import CellEvent
from benchmarks.driver.planning.plan import Request, make
from benchmarks.store.cell import Cell
from benchmarks.store.runs import Store

TABLE = """\
name: large
title: "Ten thousand groups"
pairs: [resnet14-resnet8, resnet20-resnet8, wrn_16_1-resnet8, wrn_16_2-resnet8]
methods: [kd, dkd]
presets:
  paper: {{protocol: digits-demo, seeds: [{seeds}]}}
"""
TEACHERS = 4
MORTALITY = 0.03
"""How often a place dies under a job."""


class Places:
    """Places in virtual time.

    now       seconds that would have passed
    busy      seconds of all places together
    computed  how often each cell was trained to its end
    lost      how many places died
    """

    def __init__(self, store: Store, slots: int, draw: random.Random) -> None:
        self._store, self.slots, self._draw = store, slots, draw
        self._facts = environment.describe(torch.device("cpu"))
        self._running: list[tuple[float, int, Job, int]] = []
        self._held = set[str]()
        self.now, self.busy, self.lost, self.count = 0.0, 0.0, 0, 0
        self.computed = Counter[str]()

    def start(self, job: Job) -> None:
        assert len(self._running) < self.slots
        keys = {cell.key for cell in job.cells}
        assert not keys & self._held, "at two places at a time"
        assert all(self.computed[teacher] for teacher in job.teachers)
        self._held |= keys
        seconds = sum(self._draw.uniform(60, 90) for _ in job.cells)
        ends = len(job.cells)
        if self._draw.random() < MORTALITY:
            ends, seconds = self._draw.randrange(ends), seconds * self._draw.random()
        self.count += 1
        self.busy += seconds
        heapq.heappush(self._running, (self.now + seconds, self.count, job, ends))

    def messages(self, seconds: float) -> list[tuple[Job, Any]]:
        self.now, _, job, ends = heapq.heappop(self._running)
        for cell in job.cells[:ends]:
            self._train(cell)
        self._held -= {cell.key for cell in job.cells}
        dead = ends < len(job.cells)
        self.lost += dead
        events = [(job, CellEvent(cell.key, "done", (9, 0), 1, 0, None)) for cell in job.cells[:ends]]
        return [*events, (job, Ended("killed by SIGKILL") if dead else Finished())]

    def _train(self, cell: Cell) -> None:
        with self._store.run(cell).lock() as mine:
            assert mine
            run = self._store.create(cell)
            run.add_environment(self._facts, 1)
            run.set_status("running", epoch=0, epochs=8)
            run.set_metrics([{"epoch": e, "metrics": {"top1": 70.0}, "losses": {"task": 1.0}} for e in range(1, 9)])
            run.write("student.pt", b"")
            run.set_status("done", epoch=8, epochs=8, last={"top1": 70.0}, best={"top1": 70.0}, remarks=[])
        self.computed[cell.key] += 1

    def stop(self) -> None:
        raise AssertionError("nothing asked for it")

    def close(self) -> None:
        assert not self._running


class Quiet:
    """A watcher that counts what is left out."""

    missing = 0

    def __call__(self, member: Any, event: str) -> None: ...

    def say(self, line: str) -> None: ...

    def left_out(self) -> None:
        self.missing += 1


def simulate(tmp_path: Path, groups: int, slots: int) -> dict[str, float]:
    """Run so many groups; returns processor seconds of each part, and the share of virtual time that places work."""
    (tmp_path / "large.yaml").write_text(TABLE.format(seeds=", ".join(map(str, range(groups // TEACHERS)))))
    where = Workspace(torch.device("cpu"), tmp_path, tmp_path, tmp_path / "results")
    clock = [time.process_time()]
    plan = make(Request(str(tmp_path / "large.yaml")), where)
    cells = plan.every_cell()
    clock.append(time.process_time())
    ((protocol, stages),) = plan.stages(cells)
    jobs = [Job(group, protocol) for stage in stages for group in divided(stage, slots)]
    clock.append(time.process_time())
    store, watcher = Store(where.output), Quiet()
    places = Places(store, slots, random.Random(0))
    schedule.run(jobs, places, watcher, store, lambda: False)
    clock.append(time.process_time())

    assert len({cell.group() for cell in plan.cells.values()}) == groups
    facts = store.facts(cell.key for cell in cells)
    states = Counter(fact.status["state"] for fact in facts.values())
    assert set(places.computed.values()) == {1}, "no cell twice"
    assert states["done"] == len(places.computed) and states.total() == len(cells) and places.lost > groups / 100
    assert states["failed"] == watcher.missing == len(cells) - states["done"] <= groups / 100, "under lost places alone"
    planned, parted, scheduled = (end - start for start, end in itertools.pairwise(clock))
    return {
        "plan": planned, "divide": parted, "schedule and store": scheduled, "groups/s": groups / scheduled,
        "lost": places.lost, "failed": states["failed"], "busy": places.busy / places.now / slots,
    }  # fmt: skip


@pytest.mark.slow
def test_ten_thousand_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    took = simulate(tmp_path, 10_000, 512)
    print({name: round(value, 2) for name, value in took.items()})
    assert took["busy"] > 0.9, "places do not wait for the harness's order"


def test_a_hundred_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    simulate(tmp_path, 100, 8)
