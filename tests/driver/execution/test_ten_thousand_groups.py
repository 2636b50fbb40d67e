"""The harness without training: the real plan, groups, scheduler and store of 10,000 groups, on machines that die.

Time is virtual: a step takes what was measured of one. Of the machine only the harness's own time passes.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common import environment
from benchmarks.common.events import CellEnded, Event, LeftOut
from benchmarks.common.places import PACKAGE
from benchmarks.common.process.children import Ended
from benchmarks.common.workspace import Workspace
from benchmarks.driver.execution import scheduling
from benchmarks.driver.execution.jobs import Finished, Job, divided
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
MACHINE = 8
"""Places of a machine."""
MORTALITY = 0.005
"""How often a machine dies under a job; all that run on it are lost."""
EPOCHS, STEPS = 240, 782
"""Of a cell under the recipe that the step times are of. A checkpoint is saved after each epoch."""


def step_seconds() -> dict[str, float]:
    """Measured seconds of a training step, resnet56 to resnet20 on a CPU, by method."""
    file = PACKAGE / "suites" / "results" / "xeon-2-threads" / "costs.json"
    measured = {line["name"]: line["stats"]["median"] for line in json.loads(file.read_text())["benchmarks"]}
    return {name: measured[f"test_training_step[resnet56-resnet20-{name}]"] for name in ("student", "kd", "dkd")}


@dataclass
class Running:
    """A job on a machine: what is left of its cells takes so many seconds each, one after another."""

    job: Job
    machine: int
    start: float
    seconds: list[float]


class Places:
    """Places of machines in virtual time.

    now       seconds that would have passed
    busy      seconds of all places together
    epochs    how many epochs of each cell were trained and saved
    ended     how often each cell was trained to its end
    lost      how many jobs lost their machine
    """

    def __init__(self, store: Store, slots: int, draw: random.Random) -> None:
        self._store, self.slots, self._draw = store, slots, draw
        self._facts, self._step = environment.describe(torch.device("cpu")), step_seconds()
        self._free = list(range(slots))
        self._running: dict[int, Running] = {}
        self._events: list[tuple[float, int, int]] = []
        self._held = set[str]()
        self.now, self.busy, self.lost, self.count = 0.0, 0.0, 0, 0
        self.epochs, self.ended = Counter[str](), Counter[str]()

    def start(self, job: Job) -> None:
        keys = {cell.key for cell in job.cells}
        assert not keys & self._held, "at two places at a time"
        assert all(self.ended[teacher] for teacher in job.teachers)
        self._held |= keys
        left = [EPOCHS - self.epochs[cell.key] for cell in job.cells]
        seconds = [
            epochs * STEPS * self._step[cell.method] * self._draw.uniform(0.9, 1.1)
            for cell, epochs in zip(job.cells, left, strict=True)
        ]
        place = self._free.pop()
        self._running[place] = Running(job, place // MACHINE, self.now, seconds)
        self.count += 1
        heapq.heappush(self._events, (self.now + sum(seconds), self.count, place))
        if self._draw.random() < MORTALITY:
            dies = self.now + sum(seconds) * self._draw.random()
            heapq.heappush(self._events, (dies, -self.count, place))

    def messages(self, seconds: float) -> list[tuple[Job, Any]]:
        self.now, count, place = heapq.heappop(self._events)
        if place not in self._running or (count > 0 and not self._ends_now(place)):
            return []  # of a job that lost its machine before
        if count > 0:
            return self._end(place, Finished())
        machine = self._running[place].machine
        there = [place for place, running in self._running.items() if running.machine == machine]
        self.lost += len(there)
        return [message for place in there for message in self._end(place, Ended("killed by SIGKILL"))]

    def _ends_now(self, place: int) -> bool:
        running = self._running[place]
        return running.start + sum(running.seconds) == self.now

    def _end(self, place: int, how: Finished | Ended) -> list[tuple[Job, Any]]:
        """Train the cells of a job as far as they came; returns what it sends."""
        running = self._running.pop(place)
        self._free.append(place)
        job, passed = running.job, self.now - running.start
        self.busy += passed
        self._held -= {cell.key for cell in job.cells}
        messages: list[tuple[Job, Any]] = []
        for cell, seconds in zip(job.cells, running.seconds, strict=True):
            left = EPOCHS - self.epochs[cell.key]
            ends = isinstance(how, Finished) or passed >= seconds
            self._train(cell, left if ends else int(left * max(passed, 0.0) / seconds))
            messages += [(job, CellEnded(cell.key, cell.label, "done"))] if ends else []
            passed -= seconds
        return [*messages, (job, how)]

    def _train(self, cell: Cell, epochs: int) -> None:
        if not epochs and not self.epochs[cell.key]:
            return
        with self._store.run(cell).lock() as mine:
            assert mine
            run = self._store.create(cell)
            assert not run.ended, "nothing is computed again"
            begun = self.epochs[cell.key]
            run.add_environment(self._facts, begun + 1)
            self.epochs[cell.key] = now = begun + epochs
            run.set_status("running", epoch=now, epochs=EPOCHS)
            if now < EPOCHS:
                return
            run.set_metrics([{"epoch": e, "metrics": {"top1": 70.0}, "losses": {"task": 1.0}} for e in range(1, 9)])
            run.write("student.pt", b"")
            run.set_status("done", epoch=now, epochs=EPOCHS, last={"top1": 70.0}, best={"top1": 70.0}, remarks=[])
        self.ended[cell.key] += 1

    def stop(self) -> None:
        raise AssertionError("nothing asked for it")

    def close(self) -> None:
        assert not self._running


class Quiet:
    """A watcher that counts what is left out."""

    missing = 0

    def __call__(self, event: Event) -> None:
        self.missing += isinstance(event, LeftOut)


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
    scheduling.run(jobs, places, watcher, store, lambda: False)
    clock.append(time.process_time())

    assert len({cell.group() for cell in plan.cells.values()}) == groups
    facts = store.facts(cell.key for cell in cells)
    assert Counter(fact.status["state"] for fact in facts.values()) == {"done": len(cells)}, "no cell is lost"
    assert places.ended == dict.fromkeys(facts, 1), "no cell twice"
    assert places.epochs == dict.fromkeys(facts, EPOCHS), "no epoch twice"
    assert places.lost > groups / 100 and not watcher.missing
    planned, parted, scheduled = (end - start for start, end in itertools.pairwise(clock))
    return {
        "plan": planned, "divide": parted, "schedule and store": scheduled, "groups/s": groups / scheduled,
        "lost": places.lost, "days": places.now / 86400, "busy": places.busy / places.now / slots,
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
