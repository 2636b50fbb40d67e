"""What an engine is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol as Interface

from torch import Tensor

from ...common.workspace import Workspace
from ...config.protocol import Protocol
from ...cost.cards import Speed
from ...report.model import CostEntry
from ...store.cell import Cell
from ...store.runs import Run
from ...tasks import Task
from ...tasks.stated import Stated
from ...teachers.zoo import Teacher
from .context import Context


class Estimated(Interface):
    """What cells of one task will cost."""

    def operations(self, cell: Cell, /) -> float | None:
        """Floating-point operations of a cell's training; 0 of one that is not for its pair, None if not counted."""

    def seconds(self, cells: Sequence[Cell], /) -> float:
        """Of the training of a group, or of a part of one."""


Train = Callable[[Sequence[Cell], Context], None]
Assist = Callable[[Cell, Context, Run], None]
Accuracy = Callable[[Teacher, Protocol, Workspace], Mapping[str, float]]
Cost = Callable[[Cell, Protocol, Workspace], CostEntry]
Estimate = Callable[[Sequence[Cell], Protocol, Task | Stated, Mapping[str, float], Workspace, Speed | None], Estimated]


@dataclass(frozen=True)
class Evaluated:
    """The metrics of a deployed network, on so many samples; 0 where none of them is a mean over samples (mAP)."""

    metrics: Mapping[str, float]
    samples: int = 0


Evaluate = Callable[[Cell, Protocol, Path], Evaluated]
"""What a cell's deployed network of the last epoch measures, from its file, under the cell's protocol."""

Form = Callable[[Cell, Mapping[str, Tensor], Path, Workspace], None]


@dataclass(frozen=True)
class Engine:
    """How cells are trained, a teacher file is measured, and a training step's cost is taken.

    name      as messages call it
    reads     what the networks of its tasks read: ``images``, ``text``, ``detection``
    train     (cells, context): computes every cell that the store does not have
    accuracy  the task's metric of a teacher's installed file on the test set
    cost      the figures of a cell's step, measured with what is kept in the workspace's store
    estimate  (cells, protocol, data, left, workspace, speed) before any is trained: ``left`` is the share of its epochs
              that a cell still has to make, by key, of those that are to be trained; the ``speed`` is another device's,
              on which nothing is timed. None: it cannot be known without training
    forms     as what else its students can be written (:data:`benchmarks.driver.convert.FORMS`)
    alone     whether it trains cells that are one process's
    divides   whether it trains those whose batches several processes share
    assist    (cell, context, run): trains a cell beside the process that does so by ``train``, where both share batches
    evaluator what evaluates students' files here, one after another, on the workspace's data
    """

    name: str
    reads: tuple[str, ...]
    train: Train
    accuracy: Accuracy
    cost: Cost
    estimate: Estimate | None = None
    forms: Mapping[str, Form] = field(default_factory=dict)
    alone: bool = True
    divides: bool = False
    assist: Assist | None = None
    evaluator: Callable[[Workspace], Evaluate] | None = None
