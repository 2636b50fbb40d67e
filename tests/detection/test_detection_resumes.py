"""Every method for detectors: killed in its second epoch and resumed, it ends in the bits in which it ends anyway."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.detection import DENSE, DETECTION, ON_HEADS, REGIONS, STUDENT, TEACHER, job_of, needs_mmdetection, train
from helpers.tables import methods_of_tables

import kd_methods
from benchmarks import networks
from benchmarks.common.events import Stepped
from benchmarks.common.weights import load_weights, to_bytes, weights_digest
from benchmarks.detection import engine
from benchmarks.store.cell import TeacherRef
from benchmarks.store.make_cell import Distillation, make_cell

needs_mmdetection()

COMPOSED = [
    name
    for name in sorted(methods_of_tables() - set(kd_methods.available()))
    if kd_methods.card(name).modality == "detection"
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DETECTION, *COMPOSED, *REGIONS])
def test_killed_in_the_second_epoch_and_resumed(
    name: str, shapes: Path, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_stage = name in (*DENSE, *ON_HEADS)
    teacher, student = ("gfl_small_r18x2", "gfl_small_r18x4") if one_stage else (TEACHER, STUDENT)
    plain, file = job_of(tmp_path, shapes), tmp_path / "teacher.pt"
    torch.manual_seed(0)
    weights = networks.build_network(teacher, 3).module.state_dict()
    file.write_bytes(to_bytes(weights))
    ref = TeacherRef(teacher, (), (), weights=weights_digest(weights))
    cell = make_cell(plain.protocol, plain.cell.data, student, Distillation(name, ref, {}))
    job = dataclasses.replace(plain, cell=cell, teacher=file)
    run_processes, killed = engine._in_processes, list[int]()

    def killing(what: str, jobs: Any, hear: Any, stopping: Any) -> Any:
        def listen(event: Any) -> None:
            hear(event)
            if isinstance(event, Stepped) and event.position == (2, 1) and not killed:
                for child in multiprocessing.active_children():
                    killed.append(child.pid)  # type: ignore[arg-type]
                    os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]

        return run_processes(what, jobs, listen, stopping)

    whole = train(job, tmp_path / "whole").run(job.cell)
    monkeypatch.setattr(engine, "_in_processes", killing)
    resumed = train(job, tmp_path / "killed").run(job.cell)
    assert killed, "and it went on by itself"
    assert whole.state == resumed.state == "done", (whole.status, resumed.status)
    assert "resumed epoch: 0, iter: 3" in (resumed / "mmengine" / "console.log").read_text()
    ends = [load_weights(run / "student.pt") for run in (whole, resumed)]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert whole.metrics[-1]["losses"] == resumed.metrics[-1]["losses"]
