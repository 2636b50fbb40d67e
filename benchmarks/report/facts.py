"""What the benchmark suites note of their measurements, as the file of pytest-benchmark has it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Noted(BaseModel):
    """Facts that a table shows; there are others beside them."""

    model_config = ConfigDict(defer_build=True)


class Sections(Noted):
    """What each section of a step takes."""

    data: float | None
    teacher: float | None
    student: float | None
    method: float | None
    backward: float | None
    optimiser: float | None


class RecordedVersions(Noted):
    torch: str


class Machine(Noted):
    machine: str
    commit: str
    versions: RecordedVersions


class StepMemory(Noted):
    bytes: float | None
    kind: str
    by_part: Sections


class TrainingStep(Noted):
    pair: str
    method: str
    title: str
    family: str
    batch_size: int
    split: dict[str, float]
    times_reference: float | None = None
    turns: list[tuple[float, float]] = []
    teacher_operations: float
    own_operations: float
    student_params: int
    extra_train_params: int
    extra_inference_params: int
    first_phases: bool
    memory: StepMemory
    machine: Machine


class Inference(Noted):
    pair: str
    method: str
    batch_size: int
    macs: float


class Turn(Noted):
    baseline: float
    alone: float
    group: float


class Ratios(Noted):
    """Least, median and greatest of the turns."""

    alone: tuple[float, float, float]
    group: tuple[float, float, float]


class Loop(Noted):
    pair: str
    precision: str
    task: str
    method: str
    group: list[str]
    batch_size: int
    loader_processes: int
    turns: list[Turn]
    ratios: Ratios
    operations: float
    share_of_fastest: tuple[float, float, float]
    operators: dict[str, float]
    machine: Machine


class Held(Noted):
    peak: float
    bound: float


class GroupMemory(Noted):
    pair: str
    group: list[str]
    bytes: Held


KINDS: dict[str, type[Noted]] = {
    "training step": TrainingStep,
    "inference": Inference,
    "loop": Loop,
    "group memory": GroupMemory,
}


class Stats(Noted):
    median: float
    min: float


class BenchmarkEntry(Noted):
    extra_info: dict[str, Any]
    stats: Stats


class BenchmarkFile(Noted):
    """The file itself."""

    benchmarks: list[BenchmarkEntry]
