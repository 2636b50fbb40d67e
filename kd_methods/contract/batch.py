"""The data as methods see it: facts of the training set, one batch, where training stands, a pass of the teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .features import DenseHeads, Heads, Outputs


@dataclass(frozen=True)
class DataInfo:
    """What a method may know of the training set: its size, its labels (N,) and the number of classes.

    One class means a regression: labels are numbers, logits (B, 1) are predictions of them. A method that reads size or
    labels says so in its needs, since not whoever trains by it knows them. ``taught`` of the samples have an answer of
    the teacher; None: all.
    """

    num_samples: int
    num_classes: int
    labels: Tensor | None = None
    taught: int | None = None

    @property
    def regression(self) -> bool:
        return self.num_classes == 1


@dataclass(frozen=True)
class Batch:
    """One training batch on the device.

    inputs as the student sees them, labels (B,), positions in the training set (B,), and where a method of the group
    asked for it, a second view of the same images. In detection the labels are those of the regions, (N,), background
    is the last class, and ``boxes`` are the objects' corners in every image, (n, 4) in pixels. ``whole``: these are all
    samples of an update; else a part of them, beyond which losses that relate samples cannot see. ``renormalised`` are
    the inputs of a teacher that wants them normalised in another way, see :attr:`teacher_inputs`. ``answered`` (B,)
    says of which samples there is an answer of the teacher; None for all.

    Where images are mixed, ``soft_labels`` (B, K) are the classes' shares, which sum to 1, label smoothing included;
    labels and positions are then those of the image with the larger share. All views of a batch are mixed alike.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    task_loss: Callable[[Any, Tensor], Tensor]
    second: Tensor | None = None
    boxes: tuple[Tensor, ...] = ()
    whole: bool = True
    renormalised: Tensor | None = None
    answered: Tensor | None = None
    soft_labels: Tensor | None = None

    def rows(self, chosen: Tensor) -> Batch:
        """Some of the samples, by their positions (M,) in this batch; never the whole of an update."""
        tensors = {name: value[chosen] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors, whole=False)  # type: ignore[arg-type]

    @property
    def targets(self) -> Tensor:
        """What the task compares logits with: the soft labels (B, K) where there are such, else the labels (B,)."""
        return self.labels if self.soft_labels is None else self.soft_labels

    @property
    def teacher_inputs(self) -> Tensor:
        """The inputs as the teacher sees them: what a method's own pass of the teacher begins with."""
        return self.inputs if self.renormalised is None else self.renormalised

    def loss(self, logits: Tensor | Heads | DenseHeads) -> Tensor:
        """The task's own loss (cross-entropy for classification) of ``logits`` against this batch's :attr:`targets`.

        In detection: of the student's logits all the losses of its detector, of other :class:`Heads` those of regions,
        of :class:`DenseHeads` all of them again,
        of other logits that of the regions' classes.
        """
        return self.task_loss(logits, self.targets)


@dataclass(frozen=True)
class Progress:
    """Where training stands.

    ``epoch`` counts from 1 in epochs of the protocol's recipe. Under a shortened schedule it advances by ``span`` > 1
    at a time, so that what a recipe of 240 epochs does in its first 20 stays a twelfth of the training.
    """

    epoch: float
    epochs: int
    span: float = 1.0

    def ramp(self, epochs: float) -> float:
        """Linear warm-up factor min(epoch / epochs, 1), the mean over the recipe's epochs that this one stands for."""
        return 1.0 if epochs <= 0 else self.mean(lambda epoch: min(epoch / epochs, 1.0))

    def cosine(self, start: float) -> float:
        """Factor: 1 up to epoch ``start``, then half a cosine that ends at 0 in the last one; a mean as above."""
        length = max(self.epochs - start, 1e-9)
        return self.mean(lambda epoch: (1 + math.cos(math.pi * min(max(epoch - start, 0.0) / length, 1.0))) / 2)

    def mean(self, factor: Callable[[float], float]) -> float:
        """The mean of ``factor(epoch)`` over the recipe's epochs that this one stands for."""
        covered = range(math.floor(self.epoch - self.span) + 1, math.floor(self.epoch) + 1) or (self.epoch,)
        return sum(factor(epoch) for epoch in covered) / len(covered)


class TeacherPass:
    """The frozen teacher on the training set as it is: what :meth:`Method.prepare` computes from.

    labels are the training set's, (N,) on the CPU.
    """

    labels: Tensor

    def outputs(self, units: Iterable[str], indices: Tensor | None = None) -> Iterator[tuple[Outputs, Tensor]]:
        """Batches of the teacher's outputs with ``units`` kept, and their labels (B,), without augmentation.

        Args:
            units: names of the teacher's units.
            indices: (M,) positions of the images to see, in this order; by default all.
        """
        raise NotImplementedError

    def progress(self, text: str) -> None:
        """Report how far a long computation is; shown every now and then."""

    def stored(
        self, what: str, settings: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What ``compute`` returns, from the store where it has been computed before.

        It is kept under the teacher, the data, ``what`` and ``settings``, so it may depend on nothing else; what it
        draws from torch's random numbers is the same for every cell. What a killed process was computing is lost.
        """
        raise NotImplementedError
