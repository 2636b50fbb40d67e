"""Training on images from files: exact resume, parts of a batch, precision."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.image_files import recipe, write_images
from helpers.training_bench import REPO
from helpers.watchers import CellEvent, ForwardingWatcher, kind

import kd_methods
from benchmarks.common.weights import to_bytes, weights_digest
from benchmarks.common.workspace import Workspace
from benchmarks.config.recipe import Crops
from benchmarks.driver.engines import local
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.store.make_cell import Distillation, make_cell
from benchmarks.store.runs import Store
from benchmarks.tasks.data_sets import imagenet


class StreamedBench:
    """A pair with a transformer on images from files: a folder, a teacher file, and cells."""

    def __init__(self, folder: Path, workers: int = 0, **changes: Any) -> None:
        self.folder = folder
        self.protocol = recipe(crops=Crops(size=32, test_resize=36, workers=workers), **changes)
        root = folder / "images"
        if not root.is_dir():
            write_images(root)
        self.data = imagenet.TASKS[0].open(root, self.protocol, torch.device("cpu"))
        self.file = folder / "teacher.pt"
        if not self.file.is_file():
            torch.manual_seed(7)
            self.file.write_bytes(to_bytes(self.data.build("timm:test_resnet").module.state_dict()))
        self.store = Store(folder / "out")
        self.events: list[str] = []

    def cells(self, *methods: str) -> list[Cell]:
        digest = weights_digest(torch.load(self.file, weights_only=True))
        teacher = TeacherRef("timm:test_resnet", (0.5,) * 3, (0.25,) * 3, weights=digest)
        taught = {name: kd_methods.registry.get(name).needs_teacher for name in methods}
        return [
            make_cell(self.protocol, "files", "timm:test_vit", Distillation(name, teacher if taught[name] else None))
            for name in methods
        ]

    def run(self, cells: list[Cell], kill_after: int = 0) -> None:
        def report(event: CellEvent) -> None:
            self.events.append(kind(event))
            if self.events[-1] == "step" and self.events.count("step") == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

        local.run(
            cells,
            local.Context(
                Workspace(torch.device("cpu"), output=self.store.root),
                self.protocol,
                self.data,
                lambda ref: self.file,
                ForwardingWatcher(report),
                save_seconds=0.0,
            ),
        )

    def weights(self, cell: Cell) -> dict[str, torch.Tensor]:
        assert self.store.run(cell).state == "done", self.store.run(cell).status
        return torch.load(self.store.run(cell) / "student.pt", weights_only=True)


METHODS = ("student", "kd", "block_kd")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(map(torch.equal, one.values(), other.values()))


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp16", "accumulate": 2},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"precision": "bf16"}, marks=pytest.mark.slow),
        pytest.param(
            {"mixing": {"mixup": 0.8, "cutmix": 1.0}, "ema": 0.7, "repeats": 2, "task_loss": "bce"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_killed_in_the_middle_of_an_epoch_and_resumed_to_the_same_bits(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Whatever the arithmetic and the number of worker processes."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    paths = os.pathsep.join([str(REPO), str(REPO / "tests")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    for kill_after in (11, 0):
        killed.mkdir(exist_ok=True)
        arguments = [str(killed), str(kill_after), json.dumps(changes)]
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == (-signal.SIGKILL if kill_after else 0), done.stderr
        if not kill_after:
            # Of 3 methods, 2 epochs and 3 steps it made 11 steps before the kill; at most a step of each is lost.
            assert int(done.stdout.split()[-1]) <= 18 - 11 + 3, "it began anew"
    whole.mkdir()
    benches = [StreamedBench(folder, **changes) for folder in (killed, whole)]
    benches[1].run(benches[1].cells(*METHODS))
    for cell in benches[0].cells(*METHODS):
        assert same(*(bench.weights(cell) for bench in benches)), cell.label


def test_parts_of_a_batch_have_the_gradients_of_the_whole(tmp_path: Path) -> None:
    """Without batch statistics (a transformer), up to rounding; a last batch of fewer images as well."""
    gradients = []
    for accumulate in (1, 4):
        bench = StreamedBench(tmp_path, accumulate=accumulate, epochs=1)
        (cell,) = bench.cells("kd")
        bench.run([cell])
        gradients.append(bench.weights(cell))
    start = bench.data.build("timm:test_vit").module.state_dict()
    for key, value in gradients[0].items():
        moved = float((value - start[key]).abs().max())
        torch.testing.assert_close(gradients[1][key], value, rtol=0, atol=1e-4 * moved + 1e-7, msg=key)


def test_each_precision_trains_nearly_the_same(tmp_path: Path) -> None:
    runs = {}
    for precision in ("fp32", "bf16", "fp16"):
        bench = StreamedBench(tmp_path, precision=precision, epochs=1)
        cells = bench.cells("kd", "block_kd")
        bench.run(cells)
        runs[precision] = [bench.store.run(cell).metrics[-1]["losses"] for cell in cells]
    for precision in ("bf16", "fp16"):
        for ours, theirs in zip(runs["fp32"], runs[precision], strict=True):
            assert ours != theirs and all(theirs[name] == pytest.approx(ours[name], rel=0.2) for name in ours), theirs


if __name__ == "__main__":
    torch.set_num_threads(1)
    started = StreamedBench(Path(sys.argv[1]), workers=2, **json.loads(sys.argv[3]))
    started.run(started.cells(*METHODS), kill_after=int(sys.argv[2]))
    print(started.events.count("step"))
