"""Memory of a process that trains."""

from __future__ import annotations

import multiprocessing
import platform
import resource
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from helpers.training_bench import TrainingBench

from benchmarks.tasks.images import ImageData

PAGES = 2**24 * 4 // resource.getpagesize()
"""Of a tensor above the 32 MiB from which on glibc gives memory back at once."""


def faults() -> int:
    """How many pages are faulted in where a tensor is made as large as those that were freed before."""
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def work(send: Connection, folder: Path, data: ImageData) -> None:
    bench = TrainingBench(folder, data)
    before = faults()
    bench.student_run(*bench.cells([("student", {})]))
    send.send((before, faults()))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_any_process_that_trains_keeps_what_it_frees(tmp_path: Path, data: ImageData) -> None:
    """Also a worker, which is given its device and does not look for one."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(send, tmp_path, data))
    process.start()
    before, after = receive.recv()
    process.join()
    assert after < PAGES / 100 < before
