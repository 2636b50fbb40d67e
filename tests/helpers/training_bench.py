"""A bench that trains cells in a folder, and what its results are compared by."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from helpers.tables import methods_of_tables
from helpers.watchers import CellEvent, ForwardingWatcher, kind
from torch import Tensor

import kd_methods
from benchmarks.common.weights import to_bytes, weights_digest
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import Protocol, load_protocol
from benchmarks.config.recipe import Mixing
from benchmarks.driver.engines import local
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.store.make_cell import Distillation, make_cell
from benchmarks.store.runs import Store
from benchmarks.tasks.data_sets import digits
from benchmarks.tasks.images import ImageData, Split
from benchmarks.training.group import Group
from benchmarks.training.shared_teacher import SharedTeacher
from benchmarks.training.student_run import StudentRun
from kd_methods import registry

REPO = Path(__file__).parents[2]
CPU = torch.device("cpu")
TEACHER, STUDENT = "wrn_16_1", "resnet8"

TEACHER_STD = (0.5, 0.4, 0.3)
EPOCHS, STEPS, SAMPLES = 2, 4, 200  # the last batch of an epoch has 8 samples
NEVER = 1e9
PROTOCOL = load_protocol("digits-demo").model_copy(
    update={
        "name": "test",
        "epochs": EPOCHS,
        "recipe_epochs": 30 * EPOCHS,  # a first phase of 30 epochs takes one
        "milestones": (30,),
        "second_view": "randaugment",
    }
)
MIXED = PROTOCOL.model_copy(
    update={"name": "mixed", "mixing": Mixing(mixup=0.8, cutmix=1.0), "ema": 0.7, "label_smoothing": 0.1, "repeats": 2}
)
"""The same with mixed images and averaged weights."""
Case = tuple[str, dict[str, Any]]
FEW: list[Case] = [("student", {}), ("fitnet", {}), ("block_kd", {"sample_stones": 1})]
"""Without a teacher; with parameters of its own; with random numbers in its losses."""
COMPOSED = sorted(methods_of_tables() - set(kd_methods.available()))
"""Modified and combined methods that stand in a table."""
FOR_TRANSFORMERS = tuple(
    name for name in [*kd_methods.available(), *COMPOSED] if "vitkd" in registry.plain_methods(name)
)


def _for_images(names: Sequence[str]) -> list[Case]:
    return [
        (name, {})
        for name in names
        if kd_methods.card(name).modality in ("images", "any") and name not in FOR_TRANSFORMERS
    ]


ALL = [
    *_for_images(kd_methods.available()),
    ("block_kd", {"sample_stones": 2}),
    ("block_kd", {"teacher_bn": "batch"}),
]
COMPOSED_FOR_IMAGES = _for_images(COMPOSED)


def tiny_data(samples: int = SAMPLES, protocol: Protocol = PROTOCOL) -> ImageData:
    train, test = digits.load(Path(), False)
    splits = (Split(split.images[:count], split.labels[:count]) for split, count in ((train, samples), (test, 100)))
    return ImageData(*splits, 10, protocol, CPU)


@functools.cache
def teacher_weights(data: ImageData, name: str = TEACHER) -> dict[str, Tensor]:
    """A teacher whose running statistics have seen data; computed once, since rounding depends on the threads."""
    with torch.random.fork_rng():
        torch.manual_seed(17)
        network = data.build(name).train()
        with torch.no_grad():
            for batch in data.batches(17, 1):
                network(batch.student().inputs, fields=())
    return network.module.state_dict()


class TrainingBench:
    """A folder with a store and a teacher's file, and what trains cells in it; ``networks`` are teacher and student."""

    def __init__(
        self,
        folder: Path,
        data: ImageData,
        protocol: Protocol = PROTOCOL,
        networks: tuple[str, str] = (TEACHER, STUDENT),
    ) -> None:
        self.networks = networks
        self.folder, self.data, self.store, self.protocol = folder, data, Store(folder / "store"), protocol
        self.events: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.file = folder / "teacher.pt"
        if not self.file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            self.file.write_bytes(to_bytes(teacher_weights(data, networks[0])))
        digest = weights_digest(torch.load(self.file, weights_only=True))
        std = TEACHER_STD if protocol.std else ()
        self.ref = TeacherRef(networks[0], protocol.mean, std, weights=digest)

    def cells(self, cases: Sequence[Case], seed: int = 0) -> list[Cell]:
        made = []
        for name, values in cases:
            teacher = self.ref if registry.get(name).needs_teacher else None
            made.append(make_cell(self.protocol, "data", self.networks[1], Distillation(name, teacher, values), seed))
        return made

    def report(self, event: CellEvent) -> None:
        self.events.append((event.label, kind(event)))

    def context(self, stopping: Callable[[], bool] = lambda: False, save_seconds: float = NEVER) -> local.Context:
        return local.Context(
            Workspace(CPU, output=self.store.root), self.protocol, self.data, lambda ref: self.file,
            ForwardingWatcher(self.report, self.said.append), stopping, save_seconds=save_seconds,
        )  # fmt: skip

    def group(self, **changes: Any) -> Group:
        """The group of the bench's cells, under a protocol that may be changed."""
        protocol = self.protocol.model_copy(update=changes)
        teacher = SharedTeacher(self.context().teacher(self.ref), (protocol.mean, TEACHER_STD), protocol)
        return Group(protocol, self.data, teacher)

    def student_run(self, cell: Cell, **changes: Any) -> StudentRun:
        """A cell ready to train, in no store."""
        return StudentRun(cell, self.group(**changes), self.store.run("x" * 64))

    def run(self, cells: Sequence[Cell], **options: Any) -> None:
        local.run(cells, self.context(**options))

    def states(self, cells: Sequence[Cell]) -> list[str]:
        return [self.store.run(cell).state for cell in cells]

    def steps(self) -> Counter[str]:
        return Counter(label for label, event in self.events if event == "step")


class Result:
    """All of a finished cell that must not depend on how it came about."""

    def __init__(self, store: Store, cell: Cell) -> None:
        run = store.run(cell)
        assert run.state == "done", (cell.label, run.status)
        self.weights = torch.load(run / "student.pt", weights_only=True)
        self.checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
        self.checkpoint.pop("seconds")
        self.records = [{k: v for k, v in record.items() if k != "seconds"} for record in run.metrics]
        for record in self.checkpoint["records"]:
            record.pop("seconds")

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Result)
        return all(identical(getattr(self, name), getattr(other, name)) for name in vars(self))


def identical(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(identical(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(identical, left, right))
    return type(left) is type(right) and left == right


def differing(bench: TrainingBench, cells: Sequence[Cell], alone: Callable[[Cell], Result]) -> list[str]:
    return [cell.label for cell in cells if Result(bench.store, cell) != alone(cell)]
