"""What an engine is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

from torch import Tensor

from ...common.workspace import Workspace
from ...config.protocol import Protocol
from ...store.cell import Cell
from ...store.runs import Run
from ...teachers.zoo import Teacher
from ...training.loop import Watched


class Watcher(Interface):
    """Who follows what a job does."""

    def __call__(self, student_run: Watched, event: str, /) -> None:
        """See :data:`benchmarks.training.loop.Report`."""

    def say(self, line: str, /) -> None:
        """A line for a person."""

    def left_out(self) -> None:
        """A cell is not trained after all."""


Evaluate = Callable[[Cell, Protocol, Path], dict[str, float]]
"""The metrics of the last epoch that a cell's deployed network has, from its file, under the cell's protocol."""


@dataclass(frozen=True)
class Engine:
    """How cells are trained, a teacher file is measured, and a training step's cost is taken.

    name      as messages call it
    reads     what the networks of its tasks read: ``images``, ``text``, ``detection``
    train     (cells, context): computes every cell that the store does not have
    accuracy  the task's metric of a teacher's installed file on the test set
    cost      the figures of :class:`report.CostEntry`, measured with what is kept in the workspace's store
    counted   whether a plan can count the operations of its cells without running the engine
    forms     as what else its students can be written (:data:`benchmarks.driver.convert.FORMS`)
    alone     whether it trains cells that are one process's
    divides   whether it trains those whose batches several processes share
    assist    (cell, context, run): trains a cell beside the process that does so by ``train``, where both share batches
    evaluator what evaluates students' files here, one after another, on the workspace's data
    """

    name: str
    reads: tuple[str, ...]
    train: Callable[[Sequence[Cell], Any], None]
    accuracy: Callable[[Teacher, Protocol, Workspace], float]
    cost: Callable[[Cell, Protocol, Workspace], dict[str, Any]]
    counted: bool = True
    forms: Mapping[str, Callable[[Cell, Mapping[str, Tensor], Path, Workspace], None]] = field(default_factory=dict)
    alone: bool = True
    divides: bool = False
    assist: Callable[[Cell, Any, Run], None] | None = None
    evaluator: Callable[[Workspace], Evaluate] | None = None
