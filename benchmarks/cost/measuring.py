"""What a method costs: throughput, peak memory and extra parameters, from a short run of the method alone."""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kd_methods.contract import Outputs, Progress
from kd_methods.errors import UserError

from ..common import plugins
from ..common.devices import device as choose
from ..common.files import digest
from ..common.memory import release_memory
from ..common.process import children
from ..common.workspace import Workspace
from ..config.protocol import Protocol
from ..networks import count
from ..report.model import SECTIONS, CostEntry
from ..store.cell import Cell, TeacherRef
from ..store.runs import Run, Store
from ..tasks import TaskBatch, TaskData, get_task
from ..training.group import Group
from ..training.loop import protocol_progress, shared
from ..training.optimizers import parts_of_batch
from ..training.precision import autocast
from ..training.shared_teacher import SharedTeacher
from ..training.student_run import StudentRun
from ..training.teacher_pass import NotStored, StoredTeacherPass, identity
from .held import split
from .operations import CountedTeacher, Operations

WARM_UP, TIMED = 2, 8
"""Steps of a cost measurement."""

SCHEMA = 6
"""Part of every cost's key. Raised when a change makes steps faster or smaller, or when more is measured."""


def cost_key(cell: Cell, machine: str) -> str:
    """What a step's cost depends on: not on seed, weights or length, but on the data's size, machine and torch.

    Methods may keep something of each sample that is trained on, and data may be there in part.
    """
    identity = cell.identity()
    teacher = cell.teacher.network if cell.teacher else None
    what = {name: identity[name] for name in ("task", "data", "student", "method", "versions", "plugins")}
    step = {k: v for k, v in cell.protocol.items() if k not in ("name", "version", "epochs", "recipe_epochs")}
    return digest([SCHEMA, what, step, teacher, machine, torch.__version__, WARM_UP, TIMED])


class Bench:
    """Cells of one group set up to make steps outside the loop, on real batches and a teacher of random weights.

    What their methods prepare is taken from ``prepared`` where it is kept there, and else stays a stand-in. ``teacher``
    is that of another bench on the same data, which need not be built again.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        protocol: Protocol,
        data: TaskData,
        prepared: Path | None = None,
        teacher: SharedTeacher | None = None,
    ) -> None:
        self.protocol, self.data = protocol, data
        ref = next((cell.teacher for cell in cells if cell.teacher), None)
        self.teacher = (teacher or random_teacher(ref, protocol, data)) if ref else None
        group = Group(protocol, data, self.teacher)
        self.student_runs = [_student_run(cell, group, prepared) for cell in cells]
        self.go_to(1)
        self._batches = endless(data, protocol.batch_size)

    @property
    def student_run(self) -> StudentRun:
        """The first cell."""
        return self.student_runs[0]

    @property
    def progress(self) -> Progress:
        return protocol_progress(self.protocol, self.epoch)

    def go_to(self, epoch: int) -> None:
        """Make the steps of this epoch from now on: from 1 those of the training proper, before it of first phases."""
        self.epoch = epoch
        for student_run in self.student_runs:
            student_run.start_epoch(epoch)

    def step(self) -> None:
        """One training step of every cell as the loop makes it, the fetching of the batch included."""
        self._step()

    def _step(self, share: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        """A step; what its cells share is done inside ``share``."""
        batch = next(self._batches)
        for part in parts_of_batch(len(batch), self.protocol.accumulate):
            with share():
                inputs, outputs = shared(batch, part, self.teacher, self.student_runs)
            for student_run in self.student_runs:
                student_run.step(inputs, outputs, (self.epoch, 0), self.progress, part)

    def teacher_pass(self, batch: TaskBatch) -> Outputs | None:
        """The part of a step that a group shares."""
        return (
            self.teacher.outputs(batch, [student_run.needs for student_run in self.student_runs])
            if self.teacher
            else None
        )

    def stop_loading(self) -> None:
        """End the processes that load batches ahead; no step can be made afterwards."""
        self._batches.close()

    def split(self, timed: int) -> dict[str, float]:
        """Median seconds of each of ``SECTIONS``, every one awaited on the device before the next begins."""
        times: dict[str, list[float]] = {section: [] for section in SECTIONS}
        for _ in range(timed):
            for section, run in self.sections():
                times[section] += seconds_of_each(run, self.data.device, 0, 1)
        return {section: statistics.median(values) for section, values in times.items()}

    def sections(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """One training step of the first cell in pieces, in order, each to be run before the next is asked for.

        Where gradients are accumulated it is a step on one part of the batch.
        """
        student_run = self.student_run
        at: dict[str, Any] = {}

        def keep(name: str, make: Callable[[], object]) -> Callable[[], object]:
            return lambda: at.update({name: make()})

        def fetch() -> object:
            batch = next(self._batches)
            at["part"] = next(parts_of_batch(len(batch), self.protocol.accumulate))
            at["raw"] = at["part"].of(batch)
            return at["raw"].student(student_run.needs.views)

        def losses() -> object:
            with autocast(self.protocol, self.data.device):
                return student_run.losses(at["student"], at["teacher"], at["batch"], self.progress)

        def forward() -> object:
            with autocast(self.protocol, self.data.device):
                return student_run.forward(at["batch"])

        def update() -> None:
            student_run.optimizer.update(at["part"])
            if not student_run.phase:
                student_run.averages.update()

        with student_run.stream.active():
            yield "data", keep("batch", fetch)
            yield "teacher", keep("teacher", lambda: self.teacher_pass(at["raw"]))
            yield "student", keep("student", forward)
            yield "method", keep("losses", losses)
            yield "backward", lambda: student_run.optimizer.backward(at["losses"], at["part"])
            yield "optimiser", update

    def operations(self) -> tuple[int, int]:
        """Floating-point operations of one step: the pass that a group shares, and the cell's own part."""
        common = 0

        @contextmanager
        def share() -> Iterator[None]:
            nonlocal common
            before = counter.total
            yield
            common += counter.total - before

        with Operations() as counter:
            self._step(share)
        of_cells = counter.total - common
        return (self.teacher.operations if isinstance(self.teacher, CountedTeacher) else common), of_cells

    def seconds(self, warm_up: int, timed: int) -> float:
        """Median seconds of a step."""
        return median_seconds(self.step, self.data.device, warm_up, timed)


def random_teacher(
    ref: TeacherRef, protocol: Protocol, data: TaskData, kind: type[SharedTeacher] = SharedTeacher
) -> SharedTeacher:
    """A frozen teacher of random weights."""
    return kind(data.build(ref.network).requires_grad_(False).eval(), (ref.mean, ref.std), protocol)


def _student_run(cell: Cell, group: Group, prepared: Path | None) -> StudentRun:
    run = Run(Path(tempfile.gettempdir()))
    if prepared and cell.teacher and group.teacher:
        depends_on, shared_teacher = identity(cell, cell.teacher), group.teacher
        teacher_pass = StoredTeacherPass(
            shared_teacher.network, shared_teacher.normalisation, group.data, depends_on, prepared, _silent
        )
        try:
            return StudentRun(cell, replace(group, teacher_pass=teacher_pass.without_computing()), run)
        except NotStored:
            pass
    return StudentRun(cell, group, run)


def _silent(line: str) -> None:
    """Drops the messages of a teacher pass."""


def whole(data: TaskData, batch_size: int) -> int:
    """Samples of a whole batch: all that there are, where these are fewer."""
    return min(batch_size, data.info.num_samples)


def endless(data: TaskData, batch_size: int) -> Generator[TaskBatch, None, None]:
    """Whole batches of one epoch after another; an epoch's last one may be a small rest, and is left out."""
    size = whole(data, batch_size)
    for epoch in itertools.count(1):
        yield from (batch for batch in data.batches(0, epoch) if len(batch) == size)


def loading_seconds(data: TaskData, batch_size: int, warm_up: int, timed: int) -> float:
    """Seconds that loading and augmentation of a batch take where nothing else is done.

    Processes that load ahead deliver a batch each at about the same moment, and most steps wait for none: of them
    whole rounds are timed, after a first one.
    """
    batches, ahead = endless(data, batch_size), getattr(data, "workers", 0)
    if ahead:
        warm_up, timed = ahead, ahead * max(2, math.ceil(timed / ahead))
    seconds = seconds_of_each(lambda: next(batches).student(), data.device, warm_up, timed)
    batches.close()
    return statistics.fmean(seconds) if ahead else statistics.median(seconds)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(step: Callable[[], object], device: torch.device, warm_up: int, timed: int) -> float:
    """As :func:`seconds_of_each`."""
    return statistics.median(seconds_of_each(step, device, warm_up, timed))


def seconds_of_each(step: Callable[[], object], device: torch.device, warm_up: int, timed: int) -> list[float]:
    """Of ``timed`` steps after ``warm_up`` others, each awaited on the device."""
    for _ in range(warm_up):
        step()
    times = []
    for _ in range(timed):
        synchronise(device)
        start = time.perf_counter()
        step()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return times


def measure(
    cell: Cell, protocol: Protocol, workspace: Workspace, warm_up: int = WARM_UP, timed: int = TIMED
) -> CostEntry:
    """The cost of a cell, measured in a fresh process.

    What methods prepare from a teacher is taken from the workspace's store where it is kept there; ``timed`` steps
    count, after ``warm_up`` others.

    Raises:
        UserError: the measurement failed; the message says how.
    """
    children.preload(__name__)
    threads = torch.get_num_threads()
    answer = children.Child(_measure, cell, protocol, workspace.portable(), threads, (warm_up, timed)).answer()
    if isinstance(answer, children.Ended):
        answer = f"the process {answer.how}"
    if isinstance(answer, str):
        raise UserError(f"the cost of {cell.label} could not be measured: {answer}")
    return answer


def _measure(send: children.Send, *arguments: Any) -> None:
    try:
        send(_figures(*arguments))
    except Exception as error:  # of a method's own code, or no memory: said by the parent
        send(f"{type(error).__name__}: {error}")


def _figures(cell: Cell, protocol: Protocol, workspace: Workspace, threads: int, steps: tuple[int, int]) -> CostEntry:
    torch.set_num_threads(threads)
    plugins.load_again(workspace.plugin_files, cell.plugins)
    chosen, protocol = choose(str(workspace.device)), protocol.of_one_process()
    data = get_task(protocol.task).open(workspace.data_root, protocol, chosen)
    with peak_memory(chosen) as memory:
        bench = Bench([cell], protocol, data, Store(workspace.output).prepared)
        seconds = seconds_of_each(bench.step, chosen, *steps)
    held = split(memory["bytes"], bench.student_run, bench.teacher)
    by_part: dict[str, int | None] = {}
    for section, run in bench.sections():
        with peak_memory(chosen, memory["idle"]) as within:
            run()
        by_part[section] = within["bytes"]
    bench.stop_loading()
    size = whole(data, protocol.batch_size)
    loading = loading_seconds(data, protocol.batch_size, *steps)
    student_run = bench.student_run
    plain = count(data.build(cell.student).module.parameters())
    deployed = count(student_run.deployed.parameters())
    trained = count([*student_run.student.parameters(), *student_run.method.parameters()])
    return CostEntry(
        images_per_second=size / max(statistics.median(seconds), loading),
        step_seconds=seconds,
        modality=student_run.student.layout.modality,
        inputs_per_second=size / loading,
        peak_memory_bytes=memory["bytes"],
        memory_kind=memory["kind"],
        reserved_memory_bytes=memory["reserved"],
        memory_by_part=by_part,
        memory_split=held,
        extra_train_params=trained - plain,
        extra_inference_params=deployed - plain,
        batch_size=size,
        device=str(workspace.device),
        steps=steps[1],
        first_phases=student_run.first_epoch < 1,
    )


@contextmanager
def peak_memory(device: torch.device, idle: int | None = None) -> Iterator[dict[str, Any]]:
    """Fills in the peak of what is inside, above what was there before: in CUDA's allocator, or resident on the CPU.

    ``idle`` is what was there before, by default on entry: the process, or a data set that lies on the device.
    """
    figures: dict[str, Any] = {}
    if device.type == "cuda":
        idle = torch.cuda.memory_allocated(device) if idle is None else idle
        torch.cuda.reset_peak_memory_stats(device)
        yield figures
        figures.update(
            bytes=torch.cuda.max_memory_allocated(device) - idle,
            reserved=torch.cuda.max_memory_reserved(device),
            idle=idle,
            kind="CUDA allocated above idle",
        )
        return
    release_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to what is resident now
        idle = _status("VmRSS") if idle is None else idle
    except OSError:
        idle = None
    yield figures
    peak = _status("VmHWM") - idle if idle is not None else None
    figures.update(bytes=peak, reserved=None, idle=idle, kind="CPU resident above idle")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")
