"""What the loop asks of an optimiser, parts of a batch, and what optimisers share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar
from typing import Protocol as Interface

import torch
from torch import nn

from kd_methods.contract import Losses

from ...config.recipe import Optimizer
from ...tasks import TaskBatch
from ..replicas.replica import ALONE, Replica


@dataclass(frozen=True)
class Part:
    """One of the parts of a batch of ``size`` samples, about equally many in each.

    A process works through its ``count`` parts in turn; ``replica`` says how many processes share the batch. Where
    outputs are ``gathered``, each process computes its losses on the current parts of all processes.
    """

    index: int = 0
    count: int = 1
    size: int = 0
    replica: Replica = ALONE
    gathered: bool = False

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def last(self) -> bool:
        return self.index == self.count - 1

    @property
    def whole(self) -> bool:
        """Whether it is the only one."""
        return self.count == self.replica.count == 1

    @property
    def every(self) -> list[slice]:
        """Which samples of the batch each process has at a time."""
        total = self.count * self.replica.count
        numbers = [rank * self.count + self.index for rank in range(self.replica.count)]
        return [slice(self.size * i // total, self.size * (i + 1) // total) for i in numbers]

    @property
    def rows(self) -> slice:
        """Which samples of the batch these are."""
        return self.every[self.replica.rank]

    @property
    def lengths(self) -> list[int]:
        """How many samples each process has at a time."""
        return [rows.stop - rows.start for rows in self.every]

    @property
    def share(self) -> float:
        """Of the batch's samples, by which this process's losses count."""
        return self.among * sum(self.lengths) / self.size

    @property
    def among(self) -> float:
        """The same of those that all processes have at a time."""
        return 1 / self.replica.count if self.gathered else self.lengths[self.replica.rank] / sum(self.lengths)

    @property
    def least(self) -> int:
        """Samples in the smallest part."""
        return self.size // (self.count if self.gathered else self.count * self.replica.count)

    def of(self, batch: TaskBatch) -> TaskBatch:
        """The samples of this part, of the only part the batch itself."""
        return batch if self.whole else batch.part(self.rows)


WHOLE = Part()


def parts_of_batch(size: int, count: int, replica: Replica = ALONE) -> Iterator[Part]:
    """The parts of a batch that a process has, ``count`` of them, or as many as have two samples each.

    Batch statistics cannot be had of one. There is no part where a batch has fewer samples than there are processes:
    such a last one is left out.
    """
    count = min(count, max(size // (2 * replica.count), min(1, size // replica.count)))
    return (Part(i, count, size, replica) for i in range(count))


class TrainingOptimizer(Interface):
    """An optimiser as the loop uses it.

    One that sums gradients over the processes that share a batch says so by ``divides = True``; no other is used there.
    """

    param_groups: list[dict]

    def set_lr(self, lr: float, momentum: float | None) -> None:
        """Learning rate and, where it moves, momentum of the next updates."""

    def backward(self, losses: Losses, part: Part = WHOLE) -> None:
        """Add the gradients of ``losses`` of a part of the batch to those of the parts before it."""

    def update(self, part: Part = WHOLE) -> None:
        """After the last part: make the update, by the gradients of all processes."""

    def restart(self) -> None:
        """Forget the momentum."""

    def zero_grad(self) -> None: ...

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


@dataclass(frozen=True)
class OptimizerSetup:
    """What an optimiser is made from.

    parameters  those that it trains
    lr          the learning rate
    config      the settings of the protocol or the row
    scaler      of gradients in fp16; it may be off
    slow        ids of the parameters with the backbone's rate
    undecayed   ids of parameters without weight decay, whatever their form
    """

    parameters: list[nn.Parameter]
    lr: float
    config: Optimizer
    scaler: torch.amp.GradScaler
    slow: Collection[int] = ()
    undecayed: Collection[int] = ()

    def groups(self) -> list[dict[str, Any]]:
        """Parameters with weight decay and those without, at the full rate and at the backbone's."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in self.parameters:
            plain = (self.config.decay_matrices_only and parameter.dim() < 2) or id(parameter) in self.undecayed
            groups.setdefault((id(parameter) in self.slow, plain), []).append(parameter)
        return [
            {
                "params": groups[late, plain],
                "weight_decay": 0.0 if plain else self.config.weight_decay,
                **({"factor": self.config.backbone} if late else {}),
            }
            for late, plain in sorted(groups)
        ]


@dataclass(frozen=True)
class OptimizerKind:
    """An optimiser as protocols and rows name it.

    name          as they call it
    build         makes it from its setup
    scales        whether its gradients can be scaled for fp16
    """

    name: str
    build: Callable[[OptimizerSetup], TrainingOptimizer]
    scales: bool = True


class SummedTerms:
    """Makes an optimiser of torch one of the loop's: steps on the sum of all terms.

    Stands before torch's class among the bases, whose ``__init__`` sets ``clip`` and ``scaler``.
    """

    divides: ClassVar[bool] = True
    param_groups: list[dict]
    state: Any
    clip: float
    scaler: torch.amp.GradScaler

    def set_lr(self, lr: float, momentum: float | None) -> None:
        for group in self.param_groups:
            group["lr"] = lr * group.get("factor", 1.0)
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif momentum is not None:
                group["momentum"] = momentum

    def restart(self) -> None:
        self.state.clear()

    def backward(self, losses: Losses, part: Part = WHOLE) -> None:
        optimizer: Any = self
        if part.first:
            optimizer.zero_grad(set_to_none=True)
        total = losses.total() if part.whole else losses.total() * part.share
        self.scaler.scale(total).backward()

    def update(self, part: Part = WHOLE) -> None:
        optimizer: Any = self
        part.replica.sum_(p.grad for group in self.param_groups for p in group["params"] if p.grad is not None)
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)
        if self.clip:
            nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], self.clip)
        self.scaler.step(optimizer)
        self.scaler.update()
