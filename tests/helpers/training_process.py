"""A process that trains cells of a store and may be killed; run as a script (see :func:`main`)."""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from helpers.training_bench import MIXED, NEVER, PROTOCOL, REPO, Case, TrainingBench, tiny_data
from helpers.watchers import CellEvent, kind

from benchmarks.common import files


def process(folder: Path, cases: Sequence[Case], *options: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, __file__, str(folder), json.dumps(list(cases)), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests")])}
    return subprocess.Popen(
        arguments, cwd=REPO, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def main() -> None:
    """Train cases in a folder. With ``--kills``, in a child that is killed so many times, and started again.

    Half of the kills come from outside at a random time after a step, half from within while a file is written.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", type=json.loads)
    parser.add_argument("--save-seconds", type=float, default=NEVER)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--mixed", action="store_true")
    options = parser.parse_args()
    chance = random.Random(3)
    for attempt in range(options.kills):
        # Nothing has been computed in this process yet, so a fork of it is as good as a new one, and starts at once.
        moment, (reader, writer) = chance.randrange(1, 5), os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            if attempt % 2:
                kill_while_writing(moment)
            work(options, functools.partial(os.write, writer, b"."))
            os._exit(0)
        os.close(writer)
        for _ in range(moment):
            os.read(reader, 1)
        time.sleep(chance.random() * 0.05)
        if not attempt % 2:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reader)
        if os.WIFSIGNALED(status):
            # On a line of its own: the child may have died between its last line and that line's end.
            print("\n" + json.dumps({"event": "killed"}), flush=True)
        elif status:
            sys.exit(f"the child failed with {status}")
    work(options, lambda: None)


def kill_while_writing(moment: int) -> None:
    """Die at the ``moment``-th checkpoint, when it is written to its temporary name."""
    fsync, left = os.fsync, moment

    def die(handle: int) -> None:
        nonlocal left
        name = str(Path(f"/proc/self/fd/{handle}").readlink())
        if ".checkpoint.pt." in name:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    files.os.fsync = die


def work(options: argparse.Namespace, step: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    protocol = MIXED if options.mixed else PROTOCOL
    bench = TrainingBench(options.folder, tiny_data(protocol=protocol), protocol)

    def report(event: CellEvent) -> None:
        print(json.dumps({"cell": event.label, "event": kind(event)}), flush=True)
        if kind(event) == "step":
            step()

    bench.report = report  # type: ignore[method-assign]
    bench.run(bench.cells([(name, values) for name, values in options.cases]), save_seconds=options.save_seconds)


if __name__ == "__main__":
    main()
