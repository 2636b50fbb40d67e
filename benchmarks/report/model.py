"""What a table is made of: the whole input of the renderers, which read neither clock nor environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

RowColumn = tuple[str, str]
"""Keys of a row and a column."""

Status = Literal["done", "diverged", "failed", "refused", "missing"]
EpochRule = Literal["last", "best", "unknown", "file"]

STUDENT = "student"
"""Key of the row of plainly trained students: a reference, not a competitor."""

DECIMALS = 2
"""Of accuracies and differences between them, as they are printed."""


SECTIONS = ("data", "teacher", "student", "method", "backward", "optimiser")
"""What a training step is made of: fetching the batch, two forward passes, the losses, their gradients, the update."""

HELD = ("weights", "gradients", "optimiser", "teacher", "activations")
"""What a training step holds in memory: of student and method what is learned, its gradients and the optimiser's state;
the teacher; and the rest of the peak, which activations make up."""


@dataclass(frozen=True)
class SeedResult:
    """One planned seed of one cell. `last` and `best` are the metric by epoch rule, in the table's unit.

    A method refuses a pair that it is not made for; `message` says why.
    """

    seed: int
    status: Status
    last: float | None = None
    best: float | None = None
    message: str = ""


@dataclass(frozen=True)
class Published:
    """A figure from the literature. Where it is not comparable (`reason` says why) it gets a dagger and no gap.

    Of a teacher that is a given file the epoch rule is `file`: it is one network, and no epoch belongs to it.
    """

    value: float
    std: float | None
    source: str
    epoch_rule: EpochRule
    comparable: bool = True
    reason: str = ""


@dataclass(frozen=True)
class TableEntry:
    """One row in one column: every planned seed, run or not, and what was published for it."""

    runs: tuple[SeedResult, ...] = ()
    published: Published | None = None


@dataclass(frozen=True)
class TableRow:
    """A method. `our_choice` names the settings that no source gives; `settings_note` is printed under the table.

    `cites` are the keys of its papers in the bibliography.
    """

    key: str
    title: str
    family: str
    entries: Mapping[str, TableEntry]
    our_choice: tuple[str, ...] = ()
    settings_note: str = ""
    cites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Column:
    """A teacher-student pair on a task, with the teacher's measured and published metric.

    `titles` are the names of teacher and student as papers print them, empty where those of the code will do.
    """

    key: str
    teacher: str
    student: str
    teacher_accuracy: float | None = None
    teacher_note: str = ""
    teacher_published: Published | None = None
    task: str = ""
    metric: str = ""
    titles: tuple[str, str] = ("", "")

    @property
    def teacher_title(self) -> str:
        return self.titles[0] or self.teacher

    @property
    def student_title(self) -> str:
        return self.titles[1] or self.student


@dataclass(frozen=True)
class Table:
    """Everything one table prints. Cells are of the last epoch; gaps follow each published value's own rule.

    protocol_lines: facts of the protocol, for the caption.
    deviations:     what was not the paper's protocol; empty means that it was kept.
    provenance:     dates of the runs, commit, machine, versions.
    quoted:         methods that were not run, with published values alone.
    intervals:      beside a mean stands its 95 % confidence interval instead of the deviation between seeds.
    average_rank:   a last column has each row's rank, on average over the columns.
    protocol:       its name.
    digest:         of the keys of all its cells.
    """

    name: str
    title: str
    metric: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    protocol_lines: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: tuple[str, ...] = ()
    quoted: tuple[TableRow, ...] = ()
    protocol: str = ""
    digest: str = ""
    intervals: bool = False
    average_rank: bool = False

    @property
    def plain(self) -> list[TableRow]:
        """The plain student, if the table has it: it stands above all others."""
        return [row for row in self.rows if row.key == STUDENT]

    @property
    def families(self) -> dict[str, list[TableRow]]:
        """The other rows as they stand, family by family."""
        families: dict[str, list[TableRow]] = {}
        for row in self.rows:
            if row.key != STUDENT:
                families.setdefault(row.family, []).append(row)
        return families


@dataclass(frozen=True)
class CostEntry:
    """Cost of one row in one column, from a short run of the method alone; None where it was not measured.

    images_per_second is of the median step, or of loading where that takes longer; step_seconds has all steps; modality
    says what is counted. memory_kind says what the peak is, e.g. "CUDA allocated above idle" or "CPU resident above
    idle", and memory_split has it by HELD. first_phases: the training proper, which was measured, has others before it.
    inputs_per_second: what loading and augmentation alone deliver. machine: which it was measured on, where several can
    meet.
    """

    images_per_second: float | None
    peak_memory_bytes: int | None
    memory_kind: str
    extra_train_params: int | None
    extra_inference_params: int | None
    batch_size: int
    device: str
    steps: int
    first_phases: bool = False
    reserved_memory_bytes: int | None = None
    memory_by_part: Mapping[str, int | None] | None = None
    inputs_per_second: float | None = None
    step_seconds: Sequence[float] = ()
    modality: str = "images"
    memory_split: Mapping[str, int] | None = None
    machine: str = ""


@dataclass(frozen=True)
class CostRow:
    """A method's costs by column key; ``refused`` are the columns that it is not made for."""

    key: str
    title: str
    family: str
    entries: Mapping[str, CostEntry]
    refused: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CostTable:
    """The cost of every row of a table, over the same columns."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[CostRow, ...]
    provenance: tuple[str, ...] = ()
