"""Official data as they are known without being read: what a plan needs where they are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..config.protocol import Protocol
from . import get_task
from .base import NoData, Task
from .images import ImageBatch, Images

UNCOUNTED = {"text": "FLOPs depend on the texts and are not counted", "detection": "FLOPs of detectors are not counted"}
"""Why the FLOPs of a step are not known without the data, by what networks read."""


@dataclass(frozen=True)
class Stated:
    """A task whose data are not here; it answers for the official data as a task does for those that it reads."""

    task: Task

    @property
    def counted(self) -> bool:
        """Whether a step's FLOPs are known without the data."""
        return self.task.modality not in UNCOUNTED

    @property
    def line(self) -> str:
        """What stands in a plan for the data, in words."""
        compared = "" if self.task.official_fingerprint else "; their fingerprint is not known: no run is looked up"
        counted = "" if self.counted else f"; {UNCOUNTED[self.task.modality]}"
        count = f"planned for the official ones, {self.task.official_samples:,} samples for training"
        return f"data of {self.task.name} are not here: {count}{compared}{counted}"

    def samples(self, root: Path, download: bool = True) -> int:
        return self.task.official_samples

    def fingerprint(self, root: Path, protocol: Protocol) -> str:
        """Empty where it is not known: no cell with it is that of a run."""
        return self.task.official_fingerprint

    def deviations(self, root: Path) -> tuple[str, ...]:
        return ()

    def open(self, root: Path, protocol: Protocol, device: torch.device) -> RandomImages:
        return RandomImages(self.task, protocol, device)


def at_hand(protocol: Protocol, root: Path, stated: bool) -> tuple[Task | Stated, str]:
    """The protocol's task and the fingerprint of its data; those that are not here are ``stated`` where that will do.

    Raises:
        UserError: the data are missing, or damaged.
    """
    task = get_task(protocol.task)
    try:
        task.samples(root, download=not stated)
        return task, task.fingerprint(root, protocol)
    except NoData:
        if not (stated and task.official_samples):
            raise
    return Stated(task), task.official_fingerprint


class RandomImages(Images):
    """Noise of the shape of a task's images, as many as there are officially: what a step costs is the same."""

    def __init__(self, task: Task, protocol: Protocol, device: torch.device) -> None:
        size = protocol.side(task.size)
        labels = torch.arange(task.official_samples - protocol.holdout) % task.num_classes
        super().__init__(labels, task.num_classes, 0, (3, size, size), protocol, device)

    def batches(self, seed: int, epoch: int, start: int = 0) -> Iterator[ImageBatch]:
        for step, chosen in self.order(seed, epoch, start):
            indices = chosen.to(self.device)
            second = partial(self._noise, len(indices)) if self.protocol.second_view else None
            yield self.batch((seed, epoch, step), self._noise(len(indices)), indices, second)

    def clean(self, indices: Tensor, test: bool = False) -> ImageBatch:
        chosen = indices.to(self.device)
        return ImageBatch(self._noise(len(chosen)), self.labels[chosen], chosen, self.seen)

    def cleaned(self, indices: Tensor, size: int) -> Iterator[ImageBatch]:
        return map(self.clean, indices.split(size))

    def augmented(self, seed: int, size: int) -> Iterator[ImageBatch]:
        return self.cleaned(torch.arange(self.info.num_samples), size)

    def _noise(self, count: int) -> Tensor:
        channels, height, width = self.input_shape
        return torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, device=self.device)
