"""The first steps of cells in fp64, on one process or on several that share the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from helpers.training_bench import PROTOCOL, STUDENT, TEACHER, Case, tiny_data
from torch import Tensor, nn

from benchmarks.common.seeding import SharedStream, seed_all
from benchmarks.config.protocol import Protocol, load_protocol
from benchmarks.store.cell import TeacherRef
from benchmarks.store.make_cell import Distillation, make_cell
from benchmarks.store.runs import Run
from benchmarks.tasks import TaskData, get_task
from benchmarks.training.group import Group
from benchmarks.training.loop import protocol_progress, shared
from benchmarks.training.optimizers import parts_of_batch
from benchmarks.training.replicas.replica import ALONE, Replica, joined
from benchmarks.training.shared_teacher import SharedTeacher
from benchmarks.training.student_run import StudentRun
from kd_methods import registry

Gradients = dict[str, Tensor]
BATCH = 7
"""Odd, so that two processes have parts of different sizes."""


def work(
    send: Callable[[Any], None],
    cases: list[Case],
    place: tuple[int, int, Path],
    kind: str = "images",
    sync: bool = False,
) -> None:
    """In a process: the first one tells of every case ``(label, gradients, buffers)`` after a step of each phase.

    Networks are those of a ``kind``: for images, vision transformers, or for texts.

    Batch statistics are frozen, or with ``sync`` those of all processes.
    """
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    rank, count, rendezvous = place
    with joined(rank, count, rendezvous, torch.device("cpu")) if count > 1 else nullcontext(ALONE) as replica:
        pair, protocol, data = _KINDS[kind](count, sync)
        for name, values in cases:
            for phase, *states in _steps(name, values, _group(pair[0], protocol, data, replica), pair, not sync):
                if replica.first:
                    # As arrays: a tensor would be shared with a process that may be gone when it is looked at.
                    arrays = [{key: value.numpy() for key, value in tensors.items()} for tensors in states]
                    send((f"{name}{values or ''}/{phase}", *arrays))


def _images(count: int, sync: bool) -> tuple[tuple[str, str], Protocol, TaskData]:
    shared = {"world_size": count, "sync_bn": sync and count > 1}
    protocol = PROTOCOL.model_copy(update={"batch_size": BATCH, **shared})
    return (TEACHER, STUDENT), protocol, tiny_data(40, protocol)


def _two_momenta(count: int, sync: bool) -> tuple[tuple[str, str], Protocol, TaskData]:
    """An optimiser that keeps the gradients of task and distillation apart; they show in its update alone."""
    pair, protocol, data = _images(count, sync)
    optimizer = protocol.optimizer.model_copy(update={"name": "dot", "delta": 0.075})
    return pair, protocol.model_copy(update={"optimizer": optimizer}), data


def _transformers(count: int, sync: bool) -> tuple[tuple[str, str], Protocol, TaskData]:
    changes = {"batch_size": BATCH, "holdout": 1397, "world_size": count}
    protocol = load_protocol("digits32-demo").model_copy(update=changes)
    data = get_task(protocol.task).open(Path(), protocol, torch.device("cpu"))
    return ("timm:test_vit", "timm:test_vit"), protocol, data


def _texts(count: int, sync: bool) -> tuple[tuple[str, str], Protocol, TaskData]:
    from helpers import text

    protocol = text.PROTOCOL.model_copy(update={"task": "grammar", "batch_size": BATCH, "world_size": count})
    return ("bert_l4_h64", "bert_l2_h64"), protocol, text.SMALL_TASK.open(Path(), protocol, torch.device("cpu"))


_KINDS = {"images": _images, "two momenta": _two_momenta, "transformers": _transformers, "text": _texts}
"""Teacher and student, their protocol on so many processes, and the data, by what the networks read."""


def _group(teacher: str, protocol: Protocol, data: TaskData, replica: Replica) -> Group:
    seed_all(17)
    network = data.build(teacher).requires_grad_(False).eval()
    return Group(protocol, data, SharedTeacher(network, (protocol.mean, protocol.std), protocol), replica=replica)


def _steps(
    name: str, values: dict[str, Any], group: Group, pair: tuple[str, str], frozen: bool
) -> Iterator[tuple[str, Gradients, Gradients]]:
    ref = TeacherRef(pair[0], group.protocol.mean, group.protocol.std, weights="none")
    taught = Distillation(name, ref if registry.get(name).needs_teacher else None, values)
    cell = make_cell(group.protocol, "data", pair[1], taught)
    student_run = StudentRun(cell, group, Run(Path("nowhere")))
    student_run.stream = SharedStream(cell.seed, torch.device("cpu"))  # on one process, too
    batch: Any = next(group.data.batches(0, 1))
    if group.protocol.views > 1:  # drawn once, in fp32
        torch.set_default_dtype(torch.float32)
        batch._view(2)
        torch.set_default_dtype(torch.float64)
    for epoch in sorted({student_run.first_epoch, 1}):
        student_run.start_epoch(epoch)
        student_run.student.train(not frozen)
        for child in (*student_run.student.modules(), *student_run.method.modules()):
            if isinstance(child, nn.Dropout) or (frozen and isinstance(child, nn.modules.batchnorm._BatchNorm)):
                child.eval()
        for piece in parts_of_batch(len(batch), 1, group.replica):
            inputs, outputs = shared(batch, piece, group.teacher, [student_run])
            progress = protocol_progress(group.protocol, epoch)
            student_run.step(inputs, outputs, (epoch, 0), progress, piece)
        named = {**dict(student_run.student.named_parameters()), **dict(student_run.method.named_parameters())}
        gradients = {key: value.grad.clone() for key, value in named.items() if value.grad is not None}
        state = {**student_run.student.state_dict(prefix="student."), **student_run.method.state_dict()}
        after = {key: value.clone() for key, value in state.items()}
        sums = {f"sum of {key}": value.clone() for key, value in student_run.sums.items()}
        yield ("first" if epoch < 1 else "proper"), gradients, {**after, **sums}
