"""Memory of a process that trains for another one."""

from __future__ import annotations

import multiprocessing
import platform
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from helpers.plans import CPU

from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.driver.execution.jobs import Job
from benchmarks.driver.execution.relay import work
from benchmarks.store.make_cell import student_cell
from benchmarks.tasks import get_task

PAGES = 2**24 * 4 // resource.getpagesize()
"""Of a tensor above the 32 MiB from which on glibc gives memory back at once."""


def pages_are_huge() -> bool:
    """Whether Linux gives huge pages to whoever asks for much memory, so that faults do not count pages."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.is_file() and "[always]" in setting.read_text()


def faults() -> int:
    """How many pages are faulted in where a tensor is made as large as those that were freed before."""
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def measure(send: Connection, folder: Path) -> None:
    protocol, before = load_protocol("digits-demo"), faults()
    job = Job((student_cell("resnet8", protocol, get_task("digits").fingerprint(Path(), protocol), {}),), protocol)
    work(lambda message: None, job, Workspace(CPU, folder, output=folder), lambda: True)
    send.send((before, faults()))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.skipif(pages_are_huge(), reason="huge pages are always on: a fault brings in more than a page")
def test_a_worker_keeps_what_it_frees(tmp_path: Path) -> None:
    """It is given its device, and does not look for one."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(send, tmp_path))
    process.start()
    before, after = receive.recv()
    process.join()
    assert after < PAGES / 100 < before
