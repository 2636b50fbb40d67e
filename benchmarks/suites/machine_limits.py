"""What a machine can do at most, and what a group of cells may hold: the bounds that the loop is measured against."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..cost.held import of_cell, of_teacher, size
from ..cost.measuring import Bench, endless, peak_memory, seconds_of_each, synchronise
from ..cost.profile import memory_timeline, profiler
from ..networks import macs
from ..report.layouts.loop_table import by_operator
from ..training.loop import shared
from ..training.optimizers import WHOLE
from ..training.student_run import StudentRun

MATRICES = (1024, 2048, 4096)
"""Sides of the square matrices that are multiplied."""

CONVOLUTIONS = ((16, 32, 64), (32, 16, 64), (64, 32, 64), (128, 16, 64), (256, 16, 64), (64, 56, 16))
"""3x3 convolutions as (channels, height and width, images): two narrow ones of CIFAR's networks, and wide ones."""

BEST_OF = 10


def fastest(device: torch.device) -> dict[str, float]:
    """Operations per second of large matrix products and convolutions in fp32, the best of several runs each.

    A library's matrix product can be far from the best, so there are both.
    """
    rates = {}
    with torch.no_grad():
        for side in MATRICES:
            a = torch.randn(side, side, device=device)
            rates[f"matrix product {side}"] = 2 * side**3 / _shortest(partial(torch.matmul, a, a), device)
        for channels, side, images in CONVOLUTIONS:
            layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device)
            layer = layer.to(memory_format=torch.channels_last)
            x = torch.randn(images, channels, side, side, device=device)
            x = x.to(memory_format=torch.channels_last)
            operations = 2 * 9 * channels**2 * side**2 * images
            name = f"convolution {channels} channels, {side}x{side}"
            rates[name] = operations / _shortest(partial(layer, x), device)
    return rates


def _shortest(run: Callable[[], object], device: torch.device) -> float:
    return min(seconds_of_each(run, device, 1, BEST_OF))


def needed(bench: Bench) -> int:
    """Floating-point operations that a distillation step needs at least: the teacher's pass and three of the student's.

    The backward pass has two products for each of the forward pass; what a method adds is not counted.
    """
    one = bench.data.clean(torch.zeros(1, dtype=torch.long)).student().inputs
    passes = 3 * macs(bench.student_run.student.plain(), one)
    if bench.teacher:
        passes += macs(bench.teacher.network.plain(), one)
    return 2 * passes * bench.protocol.batch_size


def operators(bench: Bench) -> dict[str, float]:
    """Shares of a step's time in the eight operators that take most of it."""
    device = bench.data.device
    with profiler(device) as profile:
        bench.step()
        synchronise(device)
    self_time = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    times = {event.key: getattr(event, self_time) for event in profile.key_averages()}
    total = sum(times.values())
    return dict(list(by_operator({name: time / total for name, time in times.items()}).items())[:8])


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors in a group's step, and the parts of what it may hold at most.

    peak         most that was alive at once
    teacher      its weights, and the copy of them with folded batch-norms
    outputs      the teacher's outputs that the methods read
    cells        weights, gradients, optimiser state and method modules of all cells
    step         what the largest cell's own step makes: its activations and losses, and the batch
    """

    peak: int
    teacher: int
    outputs: int
    cells: int
    step: int

    @property
    def bound(self) -> int:
        """The teacher with its kept outputs, all cells, and one student's activations."""
        return self.teacher + self.outputs + self.cells + self.step


def memory(bench: Bench) -> Memory:
    """The memory of a group's step beside its bound, in which only one cell at a time has activations.

    Cells are looked at after a step, so that gradients and momentum are there.
    """
    bench.step()
    device, batches = bench.data.device, endless(bench.data, bench.protocol.batch_size)
    weights = size(of_teacher(bench.teacher))
    cells = sum(map(_of_cell, bench.student_runs))
    inputs, teacher_outputs = shared(next(batches), WHOLE, bench.teacher, bench.student_runs)
    outputs = size(teacher_outputs.tensors() if teacher_outputs else ())
    steps = []
    for student_run in bench.student_runs:
        # torch's profiler does not see what it has not seen made go, so gradients go before.
        student_run.optimizer.zero_grad()
        steps.append(made(partial(student_run.step, inputs, teacher_outputs, (bench.epoch, 0), bench.progress), device))
        student_run.optimizer.zero_grad()
    batch = size((inputs.inputs, inputs.labels, inputs.indices))
    del inputs, teacher_outputs
    before = weights + sum(map(_of_cell, bench.student_runs))
    return Memory(before + made(bench.step, device), weights, outputs, cells, max(steps) + batch)


def made(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that are alive while ``run`` runs, above those that were before."""
    if device.type == "cuda":
        with peak_memory(device) as figures:
            run()
        return figures["bytes"]
    with profiler(device, profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        timeline, _ = memory_timeline(trace, device.type)
    return int(max((live for _, live in timeline), default=0))


def _of_cell(student_run: StudentRun) -> int:
    """Bytes of weights, gradients, optimiser state, and what the method has registered."""
    return size(tensor for tensors in of_cell(student_run).values() for tensor in tensors)
