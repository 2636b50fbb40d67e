"""What the benchmark suites note of their measurements, as the file of pytest-benchmark has it."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

REFERENCE = "kd"
"""The method beside whose step each other one is timed."""


Positive = Annotated[float, Field(gt=0)]
"""What others are divided by."""

NotNegative = Annotated[float, Field(ge=0)]


class Noted(BaseModel):
    """Facts that a table shows; there are others beside them."""

    model_config = ConfigDict(defer_build=True)


Amount = TypeVar("Amount")


class Sections(Noted, Generic[Amount]):
    """An amount of each section of a step."""

    data: Amount
    teacher: Amount
    student: Amount
    method: Amount
    backward: Amount
    optimiser: Amount


class StepSeconds(Sections[NotNegative]):
    """What each section of a step takes, in seconds."""

    @model_validator(mode="after")
    def _takes_time(self) -> StepSeconds:
        if not any(vars(self).values()):
            raise ValueError("no section takes any time")
        return self


class RecordedVersions(Noted):
    torch: str


class Machine(Noted):
    machine: str
    commit: str
    versions: RecordedVersions


class StepMemory(Noted):
    bytes: float | None
    kind: str
    by_part: Sections[float | None]


class TrainingStep(Noted):
    pair: str
    method: str
    title: str
    family: str
    batch_size: int
    split: StepSeconds
    turns: list[tuple[Positive, Positive]] = []
    times_reference: Positive | None = None
    teacher_operations: float
    own_operations: float
    student_params: int
    extra_train_params: int
    extra_inference_params: int
    first_phases: bool
    memory: StepMemory
    machine: Machine

    @model_validator(mode="after")
    def _timed_beside_the_reference(self) -> TrainingStep:
        if not self.turns and self.times_reference is None and self.method != REFERENCE:
            raise ValueError("it has no turns")
        return self


class Inference(Noted):
    pair: str
    method: str
    batch_size: int
    macs: float
    seconds: float = 0.0
    """The median, which pytest-benchmark itself has."""


class Turn(Noted):
    baseline: Positive
    alone: Positive
    group: Positive


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
    turns: Annotated[list[Turn], Field(min_length=1)]
    ratios: Ratios
    operations: float
    share_of_fastest: tuple[float, float, float]
    operators: dict[str, float]
    compiled: bool = False
    machine: Machine


class Held(Noted):
    peak: float
    bound: Positive


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
    median: Positive
    min: Positive


class BenchmarkEntry(Noted):
    extra_info: dict[str, Any]
    stats: Stats


class BenchmarkFile(Noted):
    """The file itself."""

    benchmarks: list[BenchmarkEntry]
