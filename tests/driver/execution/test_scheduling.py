"""Jobs on the places of a pool; the places are simulated, so that they can be lost at will."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.watchers import kind

from benchmarks.common import devices
from benchmarks.common.events import CellEnded, Event, LeftOut, Said
from benchmarks.common.process.children import Ended
from benchmarks.common.process.together import Answer
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.driver.engines import replicas
from benchmarks.driver.engines.context import Context
from benchmarks.driver.execution import scheduling
from benchmarks.driver.execution.crew import Crew
from benchmarks.driver.execution.jobs import Finished, Job, Shard, divided
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.store.runs import Store
from benchmarks.training.failures import Interrupted
from kd_methods.errors import DiskError

PROTOCOL = load_protocol("digits-demo")


def cell(method: str, seed: int = 0, teacher: Cell | None = None) -> Cell:
    ref = teacher and TeacherRef("resnet14", (0.0,), (1.0,), cell=teacher.key)
    return Cell("digits", "data", PROTOCOL.identity(), 0.1, "resnet8", method, 1, {}, seed, ref)


class RecordingWatcher:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.missing = 0

    def __call__(self, event: Event) -> None:
        match event:
            case Said(line):
                self.lines.append(line)
            case LeftOut(line):
                self.lines.append(line)
                self.missing += 1
            case _:
                self.events.append((event.label, kind(event)))


class FakePool:
    """Each job takes one poll; ``outcome`` says how it ends, by the count of jobs started before it."""

    def __init__(
        self, store: Store, slots: int, outcome: Callable[[int, Job], Any] = lambda n, job: Finished()
    ) -> None:
        self.store, self.slots, self.outcome = store, slots, outcome
        self.started: list[Job] = []
        self.running: list[Job] = []
        self.most, self.stopped, self.closed = 0, False, False

    def start(self, job: Job) -> None:
        assert len(self.running) < self.slots
        for ref in job.teachers:
            assert self.store.run(ref).state == "done", "its teacher is trained"
        self.running.append(job)
        self.most = max(self.most, len(self.running))

    def messages(self, seconds: float) -> list[tuple[Job, Any]]:
        received: list[tuple[Job, Any]] = []
        for job in self.running:
            outcome = self.outcome(len(self.started), job)
            self.started.append(job)
            if outcome == Finished():
                for one in job.cells:
                    self.store.run(one).set_status("done", last={}, best={})
                    received.append((job, CellEnded(one.key, one.label, "done")))
            received.append((job, outcome))
        self.running = []
        return received

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True


def run(
    store: Store, pool: FakePool, groups: list[list[Cell]], stopping: Callable[[], bool] = lambda: False
) -> RecordingWatcher:
    watcher = RecordingWatcher()
    scheduling.run([Job(tuple(group), PROTOCOL) for group in groups], pool, watcher, store, stopping)
    assert pool.closed
    return watcher


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_job_waits_for_its_teachers_only(store: Store) -> None:
    teacher = cell("student")
    kd, alone = cell("kd", teacher=teacher), cell("student", seed=1)
    pool = FakePool(store, 2)
    watcher = run(store, pool, [[kd], [teacher], [alone]])
    assert [job.cells for job in pool.started] == [(teacher,), (alone,), (kd,)] and pool.most == 2
    assert [event for label, event in watcher.events if label == kd.label] == ["done"]


def test_jobs_that_wait_are_not_looked_through_whenever_one_ends(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10,000 jobs that would be 50 million looks."""
    looks = 0
    teachers_of = Job.teachers.fget  # type: ignore[attr-defined]

    def counted(job: Job) -> set[str]:
        nonlocal looks
        looks += 1
        return teachers_of(job)

    monkeypatch.setattr(Job, "teachers", property(counted))
    monkeypatch.setattr("os.fsync", lambda handle: None)
    teacher, jobs = cell("student"), 60
    students = [[cell("kd", seed, teacher)] for seed in range(jobs // 2)]
    run(store, FakePool(store, 1), [*([cell("student", seed)] for seed in range(1, jobs // 2)), [teacher], *students])
    assert jobs <= looks <= 8 * jobs


def test_no_more_jobs_run_than_there_are_places(store: Store) -> None:
    pool = FakePool(store, 3)
    run(store, pool, [[cell("student", seed)] for seed in range(10)])
    assert pool.most == 3 and len(pool.started) == 10


def test_cells_without_a_teacher_are_left_out_and_the_others_go_on(store: Store) -> None:
    teacher = cell("student")
    kd, alone = cell("kd", teacher=teacher), cell("student", seed=1)
    store.run(teacher).set_status("diverged", message="so it did")
    watcher = run(store, FakePool(store, 1), [[kd, alone]])
    assert watcher.missing == 1 and watcher.lines == [f"{kd.label}  LEFT OUT: its teacher is not trained"]
    assert store.run(alone).state == "done" and store.run(kd).state == "missing"


def test_where_a_place_is_lost_its_cells_go_on_alone(store: Store) -> None:
    cells = [cell(method) for method in ("kd", "dkd", "at")]
    pool = FakePool(store, 1, lambda n, job: Ended("killed by SIGKILL") if n == 0 else Finished())
    watcher = run(store, pool, [cells])
    assert [len(job.cells) for job in pool.started] == [3, 1, 1, 1]
    assert watcher.lines == ["a worker was lost (killed by SIGKILL); its 3 cells go on, each alone"]
    assert {store.run(one).state for one in cells} == {"done"}


def test_a_cell_under_which_places_are_lost_has_failed_and_the_others_go_on(store: Store) -> None:
    bad, good = cell("at"), cell("kd")
    pool = FakePool(store, 2, lambda n, job: Ended("killed by SIGSEGV") if bad in job.cells else Finished())
    watcher = run(store, pool, [[bad, good]])
    assert store.run(good).state == "done"
    assert store.run(bad).state == "failed" and "killed by SIGSEGV" in store.run(bad).status["message"]
    assert watcher.missing == 1 and watcher.lines[-1].startswith(f"{bad.label}  FAILED: its worker was lost 3 times")


def test_what_concerns_the_run_stops_all_of_it(store: Store) -> None:
    pool = FakePool(store, 1, lambda n, job: Finished(DiskError("no space left")))
    with pytest.raises(DiskError, match="no space left"):
        run(store, pool, [[cell("kd")], [cell("dkd")]])
    assert pool.closed and len(pool.started) == 1


def test_a_stop_is_passed_on_and_waited_for(store: Store) -> None:
    asked = itertools.chain([False], itertools.repeat(True))
    pool = FakePool(store, 1, lambda n, job: Finished(Interrupted()))
    with pytest.raises(Interrupted, match="goes on from here"):
        run(store, pool, [[cell("kd")], [cell("dkd")]], lambda: next(asked))
    assert pool.stopped and pool.closed and len(pool.started) == 1


def test_a_line_is_passed_on(store: Store) -> None:
    said = iter([Said("a word"), Finished()])

    class Speaking(FakePool):
        def messages(self, seconds: float) -> list[tuple[Job, Any]]:
            message = next(said)
            return [(self.running[0], message)] if isinstance(message, Said) else super().messages(seconds)

    assert run(store, Speaking(store, 1), [[cell("kd")]]).lines == ["a word"]


@pytest.mark.parametrize(
    ("groups", "slots", "sizes"),
    [
        ([10], 1, [10]),
        ([10], 2, [5, 5]),
        ([10], 4, [2, 3, 2, 3]),
        ([4, 4], 2, [4, 4]),
        ([4, 4, 4], 2, [2, 2, 2, 2, 2, 2]),  # three jobs of four cells on two places end later
        ([1], 8, [1]),
        ([3], 8, [1, 1, 1]),
        ([], 2, []),
    ],
)
def test_groups_are_divided_as_far_as_it_saves_time(groups: list[int], slots: int, sizes: list[int]) -> None:
    teacher = cell("student", seed=99)
    cells = [cell(f"m{member}", seed, teacher) for seed, members in enumerate(groups) for member in range(members)]
    jobs = divided(cells, slots)
    assert [len(job) for job in jobs] == sizes
    assert [one for job in jobs for one in job] == cells


def test_the_places_of_a_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpus = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("benchmarks.common.machine.cores", lambda: 8)
    monkeypatch.setattr("benchmarks.common.machine.main_memory", lambda: 6 * 2**30)
    assert Crew(None).places(cpu, most=99) == [cpu] * 3, "as many as have memory"
    assert Crew(5).places(cpu, most=99) == [cpu] * 5 and Crew(5).places(cpu, most=2) == [cpu] * 2
    assert Crew(1).places(cpu, most=0) == [cpu]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    assert Crew(None).places(gpus, most=99) == [first, second]
    assert Crew(None, per_gpu=2).places(gpus, most=99) == [first, second] * 2
    assert Crew(3).places(gpus, most=99) == [first, second, first]
    assert Crew(None, per_gpu=2).places(second, most=99) == [second] * 2, "the one that was asked for"


@pytest.mark.parametrize(
    ("count", "processes", "taken"),
    [
        (4, 1, [[0], [1], [2], [3]]),
        (4, 2, [[0, 1], [2, 3]]),
        (4, 4, [[0, 1, 2, 3]]),
        (5, 2, [[0, 1], [2, 3]]),  # the last one is alone
        (8, 3, [[0, 1, 2], [3, 4, 5]]),
    ],
)
def test_each_process_of_each_job_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, count: int, processes: int, taken: list[list[int]]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    places = Crew(None).places(torch.device("cuda"), most=99, processes=processes)
    assert [[gpu.index for gpu in devices.of_processes(place, processes)] for place in places] == taken
    shared = Crew(None, per_gpu=2).places(torch.device("cuda"), most=99, processes=processes)
    assert shared == places * 2


def test_processes_on_the_cpu_are_counted_among_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.common.machine.cores", lambda: 8)
    monkeypatch.setattr("benchmarks.common.machine.main_memory", lambda: 99 * 2**30)
    cpu = torch.device("cpu")
    assert Crew(None).places(cpu, most=99, processes=3) == [cpu] * 2
    assert devices.of_processes(cpu, 3) == [cpu] * 3


def test_the_processes_of_a_cell_start_on_the_gpus_from_its_place_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[replicas.Share] = []

    def together(work: Any, shares: list[replicas.Share], *_: Any) -> Answer:
        started.extend(shares)
        return Answer(None)

    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr(replicas, "preload", lambda name: None)
    monkeypatch.setattr(replicas, "together", together)
    place = Workspace(torch.device("cuda", 2), tmp_path, output=tmp_path)
    protocol = PROTOCOL.changed(processes=2)
    replicas.run([cell("student")], Context(place, protocol, None, lambda ref: tmp_path, RecordingWatcher()))  # type: ignore[arg-type]
    assert [(share.rank, str(share.workspace.device)) for share in started] == [(0, "cuda:2"), (1, "cuda:3")]


def test_shards_are_the_plan_each_with_the_teachers_it_needs() -> None:
    first, second = cell("student", seed=98), cell("student", seed=99)
    cells = [cell(m, seed, teacher) for seed in range(3) for teacher in (first, second) for m in ("kd", "dkd")]
    shards = [Shard(index, 4).of([first, second], [first, second, *cells]) for index in (1, 2, 3, 4)]
    students = [one.key for shard in shards for one in shard if one.teacher]
    assert sorted(students) == sorted(one.key for one in cells), "each once"
    assert [len(shard) for shard in shards] == [5, 5, 3, 3], "two groups, or one, with their teacher before them"
    for shard in shards:
        known = set[str]()
        for one in shard:
            assert not one.teacher or one.teacher.cell in known
            known.add(one.key)
    assert Shard().of([first, second], [first, second, *cells]) == [first, second, *cells]
