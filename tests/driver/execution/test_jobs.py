"""What a job computes is what it was planned as."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.image_files import write_images
from helpers.plans import CPU

from benchmarks.common import devices
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.driver.engines.context import opened
from benchmarks.driver.execution.jobs import Job
from benchmarks.driver.execution.relay import work
from benchmarks.store.make_cell import student_cell
from benchmarks.tasks import get_task
from benchmarks.tasks.data_sets import folder
from benchmarks.tasks.images import ImageTask
from kd_methods.errors import UserError


def test_data_that_change_while_a_run_goes_on_are_refused(tmp_path: Path) -> None:
    """Workers read them again; what they would compute has the key of the data as they were."""
    write_images(tmp_path)
    protocol = load_protocol("digits-demo").on_task(f"folder:{tmp_path}")
    task, place = get_task(protocol.task), Workspace(CPU, tmp_path)
    job = Job((student_cell("resnet8", protocol, task.fingerprint(tmp_path, protocol), {}),), protocol)
    opened(job.cells, protocol, place)
    next(iter(tmp_path.rglob("*.JPEG"))).unlink()
    folder._task.cache_clear()  # as in a process that begins
    with pytest.raises(UserError, match=r"the data of task folder.* have changed since the run was planned"):
        opened(job.cells, protocol, place)


def test_a_machine_whose_fp32_is_loosened_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that planned may be another, in which it is not."""
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    devices.overruled.cache_clear()
    protocol, sent = load_protocol("digits-demo"), list[object]()
    job = Job((student_cell("resnet8", protocol, get_task("digits").fingerprint(Path(), protocol), {}),), protocol)
    work(sent.append, job, Workspace(CPU, tmp_path, output=tmp_path), lambda: False)
    devices.overruled.cache_clear()
    (finished,) = sent
    assert "ONEDNN_DEFAULT_FPMATH_MODE=BF16: this overrules the precision" in str(finished.error)  # type: ignore[attr-defined]
    assert not (tmp_path / "runs").exists()


def test_a_task_that_changes_settings_while_it_reads_changes_them_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    read = ImageTask.read

    def changing(task: ImageTask, root: Path, download: bool = True) -> object:
        torch.set_num_threads(2)
        return read(task, root, download)

    monkeypatch.setattr(ImageTask, "read", changing)
    protocol = load_protocol("digits-demo")
    data = get_task("digits").fingerprint(Path(), protocol)
    torch.set_num_threads(1)
    opened([student_cell("resnet8", protocol, data, {})], protocol, Workspace(CPU, Path()))
    assert torch.get_num_threads() == 1
