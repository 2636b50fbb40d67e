"""What a method costs: throughput, peak memory and extra parameters, from a short run of the method alone."""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_methods.contract import Outputs, Progress

from .cell import Cell
from .files import digest
from .networks import NetworkView
from .spec import Protocol
from .store import Run
from .tasks import TaskBatch, TaskData, get_task
from .training.loop import SharedTeacher
from .training.member import Member

WARM_UP, TIMED = 2, 8
"""Steps of a cost measurement."""


def cost_key(cell: Cell, machine: str) -> str:
    """A cost does not depend on the seed, the data's content or the teacher's weights, but on the machine."""
    identity = cell.identity()
    teacher = cell.teacher.network if cell.teacher else None
    kept = {name: identity[name] for name in ("schema", "task", "protocol", "student", "method", "plugins")}
    return digest([kept, teacher, machine, WARM_UP, TIMED])


class Bench:
    """One cell set up to make steps outside the loop, on real batches and a teacher of random weights."""

    def __init__(self, cell: Cell, protocol: Protocol, data: TaskData) -> None:
        self.protocol, self.data = protocol, data
        self.teacher: SharedTeacher | None = None
        network: NetworkView | None = None
        if cell.teacher:
            network = data.build(cell.teacher.network)
            self.teacher = SharedTeacher(network, (cell.teacher.mean, cell.teacher.std))
        self.member = Member(cell, protocol, data, network, Run(Path(tempfile.gettempdir())))
        self.member.start_epoch(1)
        self._batches = endless(data)

    def step(self) -> None:
        """One training step as the loop makes it, the fetching of the batch included."""
        batch = next(self._batches)
        self.member.step(batch.student(), self.teach(batch), (1, 0), Progress(1, self.protocol.epochs))

    def teach(self, batch: TaskBatch) -> Outputs | None:
        """The part of a step that a group shares."""
        return self.teacher.outputs(batch, [self.member]) if self.teacher else None

    def seconds(self, warm_up: int, timed: int) -> float:
        """Median seconds of a step."""
        for _ in range(warm_up):
            self.step()
        times = []
        for _ in range(timed):
            synchronise(self.data.device)
            start = time.perf_counter()
            self.step()
            synchronise(self.data.device)
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def endless(data: TaskData) -> Iterator[TaskBatch]:
    """Batches of one epoch after another."""
    for epoch in itertools.count(1):
        yield from data.batches(0, epoch)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(cell: Cell, protocol: Protocol, data_root: Path, device: torch.device) -> dict[str, Any]:
    """The cost of a cell, measured in a fresh process. Keys are those of :class:`benchmarks.report.CostEntry`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.profiling", "sklearn.datasets"])
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, cell, protocol, data_root, str(device), torch.get_num_threads())
    process = context.Process(target=_measure, args=arguments, daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"the cost measurement of {cell.label} ended with exit code {process.exitcode}") from None
    finally:
        process.join()


def _measure(sender: Any, cell: Cell, protocol: Protocol, data_root: Path, device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    chosen = torch.device(device)
    data = get_task(cell.task).open(data_root, protocol, chosen)
    with peak_memory(chosen) as memory:
        bench = Bench(cell, protocol, data)
        seconds = bench.seconds(WARM_UP, TIMED)
    member = bench.member
    plain = parameters(data.build(cell.student).module)
    deployed = parameters(member.deployed)
    trained = {id(p): p.numel() for p in [*member.student.parameters(), *member.method.parameters()]}
    sender.send(
        {
            "images_per_second": protocol.batch_size / seconds,
            "peak_memory_bytes": memory["bytes"],
            "memory_kind": memory["kind"],
            "extra_train_params": sum(trained.values()) - plain,
            "extra_inference_params": deployed - plain,
            "batch_size": protocol.batch_size,
            "device": device,
            "steps": TIMED,
        }
    )


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, Any]]:
    """Fills in the peak of what is inside: CUDA's allocator, or on the CPU resident memory above the idle process."""
    figures: dict[str, Any] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield figures
        figures.update(bytes=torch.cuda.max_memory_allocated(device), kind="CUDA allocated")
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to what is resident now
        idle = _status("VmRSS")
    except OSError:
        idle = None
    yield figures
    peak = _status("VmHWM") if idle is not None else None
    figures.update(bytes=peak - idle if peak is not None and idle is not None else None, kind="CPU resident above idle")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")
