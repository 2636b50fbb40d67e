"""Jobs on the places of a pool: each as soon as its teachers are trained, none lost where a place is."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol as Interface

from ...common.events import LeftOut, Said, Watcher
from ...common.process.children import Ended
from ...common.process.together import POLL
from ...store.cell import Cell
from ...store.runs import FINAL, Store
from ...training.failures import LOST_AT_MOST, Failure, Interrupted
from .jobs import Finished, Job, Message


class Pool(Interface):
    """Where jobs run at the same time.

    slots     how many
    start     begin a job; called while a slot is free
    messages  what jobs sent within some seconds: events, and of each job at last `Finished` or `Ended`
    stop      ask all that run to stop after the step they are at
    close     end what still runs
    """

    @property
    def slots(self) -> int: ...
    def start(self, job: Job, /) -> None: ...
    def messages(self, seconds: float, /) -> list[tuple[Job, Message]]: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...


def run(jobs: Sequence[Job], pool: Pool, watcher: Watcher, store: Store, stopping: Callable[[], bool]) -> None:
    """Run jobs to their ends.

    A job waits for those that train its teachers; cells whose teacher could not be trained are left out. Where a place
    is lost (its process was killed, say), its cells go on from their checkpoints, each alone, and one under which
    places are lost again and again has failed.

    Raises:
        Interrupted: ``stopping`` said so; all is saved.
        Exception: what ended a whole job, such as a full disk; the others have been stopped as by a request.
    """
    queue = _Queue(jobs)
    running: list[Job] = []
    losses = Counter[str]()
    error: BaseException | None = None
    stopped = False
    try:
        while queue.ready or running:
            if (error or stopping()) and not stopped:
                stopped = True
                pool.stop()
            if stopped:
                queue.ready.clear()
            while queue.ready and len(running) < pool.slots:
                job = queue.ready.popleft()
                left = taught(job, watcher, store)
                queue.ended(cell for cell in job.cells if cell not in left.cells)
                if left.cells:
                    running.append(left)
                    pool.start(left)
            for job, message in pool.messages(POLL) if running else ():
                again: list[Job] = []
                if isinstance(message, Finished):
                    error = error or message.error
                elif isinstance(message, Ended):
                    again = [] if stopped else _again(job, message, losses, watcher, store)
                else:
                    watcher(message)
                    continue
                running.remove(job)
                queue.ready.extendleft(again)
                going_on = {cell.key for other in again for cell in other.cells}
                queue.ended(cell for cell in job.cells if cell.key not in going_on)
    finally:
        pool.close()
    if error and not isinstance(error, Interrupted):
        raise error
    if stopped:
        raise Interrupted("stopped after a whole step; the same command goes on from here")


class _Queue:
    """Jobs that can be started, in their order; the others wait for those that train their teachers."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._pending = Counter(cell.key for job in jobs for cell in job.cells)
        self._missing = {job: self._pending.keys() & job.teachers for job in jobs}
        self._waiting: dict[str, list[Job]] = defaultdict(list)
        for job, teachers in self._missing.items():
            for key in teachers:
                self._waiting[key].append(job)
        self.ready = deque(job for job in jobs if not self._missing[job])

    def ended(self, cells: Iterable[Cell]) -> None:
        """Jobs whose last teachers are among these are ready now."""
        for cell in cells:
            self._pending[cell.key] -= 1
            for job in () if self._pending[cell.key] else self._waiting.pop(cell.key, ()):
                self._missing[job].discard(cell.key)
                if not self._missing[job]:
                    self.ready.append(job)


def taught(job: Job, watcher: Watcher, store: Store) -> Job:
    """A job without the cells whose teacher could not be trained; the others go on."""
    missing = {key for key in job.teachers if store.run(key).state != "done"}
    cells = [cell for cell in job.cells if not missing & cell.trained_first]
    for cell in job.cells:
        if cell not in cells:
            watcher(LeftOut(f"{cell.label}  LEFT OUT: its teacher is not trained"))
    return job.only(cells)


def _again(job: Job, how: Ended, losses: Counter[str], watcher: Watcher, store: Store) -> list[Job]:
    """What is left to do of a job whose place was lost."""
    left = [cell for cell in job.cells if store.run(cell).state not in FINAL]
    if len(left) > 1:
        watcher(Said(f"a worker was lost ({how.how}); its {len(left)} cells go on, each alone"))
        return [job.only([cell]) for cell in left]
    for cell in left:
        losses[cell.key] += 1
        if losses[cell.key] == LOST_AT_MOST:
            failure = Failure("failed", f"its worker was lost {LOST_AT_MOST} times: {how.how}")
            failure.mark(store.run(cell))
            watcher(failure.left_out(cell))
            return []
        watcher(Said(f"a worker was lost ({how.how}); {cell.label} goes on"))
    return [job.only(left)] if left else []
