"""A user's folder with a small table of their own, and the command line in it, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
PROTOCOL = """\
extends: digits-demo
name: one-epoch
version: 1
epochs: 1
batch_size: 256
milestones: []
"""
TABLE = """\
name: tiny
title: "A tiny table"
pairs: [resnet14-resnet8, resnet14-wrn_16_1]
methods: [student, kd, block_kd]
presets:
  demo: {{protocol: "{protocol}", seeds: [0, 1]}}
"""

PLUGIN = """\
import kd_methods
from kd_methods.contract import Card, Losses, Method, Needs


@kd_methods.register
class Mine(Method):
    "A user's own."

    card = Card(name="mine", version=1, family="logit", title="Our Method")
    needs = Needs(teacher=("logits",))

    def losses(self, student, teacher, batch, progress):
        match = (student.logits - teacher.logits).pow(2).mean()
        return Losses(task={"task": batch.loss(student.logits)}, distill={"match": match})
"""


class UserFolder:
    """A user's folder: a table, a protocol, data root, checkpoints and store; their path has a space."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        self.protocol = folder / "one epoch.yaml"
        self.protocol.write_text(PROTOCOL)
        self.table = folder / "tiny.yaml"
        self.table.write_text(TABLE.format(protocol=self.protocol))
        self.output = folder / "results"

    @property
    def places(self) -> list[str]:
        return ["--output", str(self.output), "--data-root", str(self.folder / "data"),
                "--checkpoints", str(self.folder / "checkpoints"), "--device", "cpu"]  # fmt: skip

    def start(self, *arguments: str, cwd: Path | None = None, **streams: Any) -> subprocess.Popen[str]:
        # One thread: these networks are tiny, and threads that wait for each other crawl on a busy machine.
        environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks", *arguments], cwd=cwd or self.folder, env=environment, text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **streams},
        )  # fmt: skip

    def call(self, *arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
        process = self.start(*arguments, cwd=cwd)
        try:
            out, err = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert "Traceback" not in err, err
        return process.returncode, out, err

    def run(self, *arguments: str) -> tuple[int, str, str]:
        return self.call(str(self.table), "--preset", "demo", *self.places, *arguments)

    def files(self, table_folder: str = "tiny-demo") -> dict[str, bytes]:
        folder = self.output / "tables" / table_folder
        return {file.name: file.read_bytes() for file in folder.glob("tiny*")}

    def runs(self) -> dict[str, tuple[int, bytes]]:
        """Every file of the store's runs with the time it was written."""
        files = (path for path in (self.output / "runs").rglob("*") if path.is_file())
        return {str(path.relative_to(self.output)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    def statuses(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in (self.output / "runs").glob("*/status.json")]

    def cells(self) -> dict[str, dict[str, Any]]:
        read = [json.loads(path.read_text()) for path in (self.output / "runs").glob("*/cell.json")]
        return {record["label"]: record["cell"] for record in read}


def children(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the workers, which are children of the server that they are forked from."""
    below = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    return [int(pid) for one in below for pid in Path(f"/proc/{one}/task/{one}/children").read_text().split()]


def until(holds: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
