"""A job's part of the machine is what it may use, not all that is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.common import machine


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system binds no process to cores")
def test_cores_are_those_that_the_process_may_run_on() -> None:
    may = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(may)})
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, may)
    assert machine.cores() == len(may)


def test_memory_is_the_least_of_the_machine_and_the_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = machine.main_memory()
    job, mine, read = tmp_path / "job", Path("/proc/self/cgroup"), Path.read_text
    (job / "step").mkdir(parents=True)
    monkeypatch.setattr(machine, "_GROUPS", tmp_path)
    monkeypatch.setattr(
        Path, "read_text", lambda path, *rest: "1:cpu:/other\n0::/job/step\n" if path == mine else read(path, *rest)
    )
    assert machine.main_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >= whole
    (job / "step" / "memory.max").write_text("max\n")
    (job / "memory.max").write_text("4096000\n")
    (tmp_path / "memory.max").write_text("9999999\n")
    assert machine.main_memory() == 4096000
