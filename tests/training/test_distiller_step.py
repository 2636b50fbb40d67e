"""A step of the suite's own loop and a call of a Distiller on the same networks and images give the same losses."""

from __future__ import annotations

import pytest
import torch
from helpers.training_bench import CPU, PROTOCOL, STUDENT, TEACHER, TrainingBench

from benchmarks.common.seeding import Stream
from benchmarks.tasks.images import ImageData
from benchmarks.training.group import Group
from benchmarks.training.loop import protocol_progress, shared
from benchmarks.training.optimizers import WHOLE
from benchmarks.training.shared_teacher import SharedTeacher
from benchmarks.training.student_run import StudentRun
from kd_methods import Distiller

METHODS = ["student", "dkd", "mlld", "crd", "simkd", "norm", "block_kd", "fitnet.paper", "srrl+sp"]


@pytest.mark.parametrize("name", METHODS)
def test_a_distiller_gives_the_loop_s_losses(name: str, bench: TrainingBench, data: ImageData) -> None:
    (cell,) = bench.cells([(name, {})])
    network = bench.group().teacher.network
    teacher = SharedTeacher(network, (PROTOCOL.mean, PROTOCOL.std), PROTOCOL) if cell.teacher else None
    student_run = StudentRun(cell, Group(PROTOCOL, data, teacher), bench.store.run(cell))

    student, frozen = data.build(STUDENT), data.build(TEACHER)
    frozen.load_state_dict(network.state_dict())
    info = data.info
    kd = Distiller(name, student, frozen if teacher else None, num_classes=info.num_classes, labels=info.labels)

    for epoch, phase in enumerate((*kd.phases, None), student_run.first_epoch):
        kd.student.load_state_dict(student_run.student.state_dict())
        kd.method.load_state_dict(student_run.method.state_dict())
        student_run.start_epoch(epoch)
        kd.begin(phase)
        progress = protocol_progress(PROTOCOL, epoch)
        batch, outputs = shared(next(iter(data.batches(0, 1))), WHOLE, teacher, [student_run])
        with Stream(cell.seed, CPU).active() if epoch == student_run.first_epoch else torch.random.fork_rng():
            images = batch.inputs if batch.second is None else (batch.inputs, batch.second)
            terms = kd(images, batch.labels, batch.indices, progress).terms()
        student_run.sums = {}
        student_run.step(batch, outputs, (epoch, 0), progress)
        assert terms.keys() == student_run.sums.keys()
        for key, term in terms.items():
            assert term.item() == pytest.approx(float(student_run.sums[key]), rel=1e-4, abs=1e-6), key
