"""What the loop asks of a task, whatever its data: networks, batches, a loss, a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor

from kd_methods.contract import Batch, DataInfo, Outputs
from kd_methods.errors import UserError

from ..config.protocol import Protocol
from ..networks import NetworkView
from .images import Normalisation


@dataclass(frozen=True)
class TaskSource:
    """Names of a form, ``SOURCE:REST``, each of which is a task.

    name    of the source, what stands before the colon
    task    the task of a REST; raises UserError where there is none
    """

    name: str
    task: Callable[[str], Task]


class NoData(UserError):
    """A task's data are not where they were looked for."""


class TaskBatch(Interface):
    """One training batch, augmented once for the whole group."""

    def __len__(self) -> int: ...

    def part(self, rows: slice) -> TaskBatch:
        """Some of its samples."""

    def student(self, views: int = 1) -> Batch:
        """The batch as students see it; with two ``views``, the second one beside the first."""

    def inputs(self, normalisation: Normalisation, view: int = 1) -> Tensor:
        """The inputs of a view, normalised as another network wants them."""

    def as_taught(self) -> TaskBatch:
        """The batch that the teacher looks at: other images, where the protocol lets it answer wrongly."""

    def answer(self, outputs: Outputs) -> Outputs:
        """The teacher's answer, given its outputs: the same, but for noise where the protocol has some."""


class TaskData(Interface):
    """A task's data on one device under one protocol."""

    info: DataInfo
    device: torch.device
    test_samples: int

    @property
    def answered(self) -> Tensor | None:
        """(N,) of which training samples there is an answer of the teacher; None for all."""

    def build(self, network: str, trained: bool = False) -> NetworkView:
        """A freshly initialised network for this task; one that is to be ``trained`` has the protocol's ``drop_path``.

        Raises:
            UserError: it cannot be had for these inputs, or has no stochastic depth.
        """

    def batches(self, seed: int, epoch: int, start: int = 0) -> Iterator[TaskBatch]:
        """The batches of an epoch from step ``start`` on; they depend on (seed, epoch, step) alone.

        Epochs count from 1; those of a method's first phases are 0, -1, and so on.
        """

    def clean(self, indices: Tensor, test: bool = False) -> TaskBatch:
        """Training or test samples by position, without augmentation."""

    def cleaned(self, indices: Tensor, size: int) -> Iterator[TaskBatch]:
        """Training samples as :meth:`clean` gives them, in batches; the next one is fetched meanwhile."""

    def augmented(self, seed: int, size: int) -> Iterator[TaskBatch]:
        """All training samples in order, in batches; if the task augments, by random draws that no epoch has."""

    def evaluate(
        self, predict: Callable[[Tensor], Mapping[str, Tensor]], normalisation: Normalisation | None = None
    ) -> dict[str, dict[str, float]]:
        """Metrics on the test set for each name in what ``predict`` returns."""


class Task(Interface):
    """A registered task."""

    @property
    def name(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def size(self) -> int:
        """Height and width of its images as networks see them by default; of texts and of detection 0."""

    @property
    def version(self) -> int:
        """Raised when what the task does with its data is mended; part of every cell."""

    @property
    def metric(self) -> str:
        """The metric that progress shows and that picks the best epoch; higher is better."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics of its evaluation; empty where they are not known before."""

    @property
    def usual_protocol(self) -> str:
        """The protocol under which its teachers are verified; it may be of another task that networks read alike."""

    @property
    def modality(self) -> str:
        """What its networks read, ``images``, ``text`` or ``detection``."""

    @property
    def official_samples(self) -> int:
        """Size of the official training set; 0 where none is official."""

    @property
    def official_fingerprint(self) -> str:
        """The fingerprint of the official data; empty where it is not known."""

    def fingerprint(self, root: Path, protocol: Protocol) -> str:
        """Digest of the data as networks see it. Raises NoData with what to do where there is none."""

    def deviations(self, root: Path) -> tuple[str, ...]:
        """How this copy of the data differs from the official one."""

    def samples(self, root: Path, download: bool = True) -> int:
        """Size of the training set."""

    def open(self, root: Path, protocol: Protocol, device: torch.device) -> Any:
        """What the task's engine trains on: for the loop :class:`TaskData` on the device."""
