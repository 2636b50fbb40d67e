"""What the loop asks of an optimiser, parts of a batch, and what optimisers share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any
from typing import Protocol as Interface

import torch
from torch import nn

from kd_methods.contract import Losses

from ...config.recipe import Optimizer
from ...tasks import TaskBatch


@dataclass(frozen=True)
class Part:
    """One of ``count`` parts of a batch of ``size`` samples, about equally many in each."""

    index: int = 0
    count: int = 1
    size: int = 0

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def last(self) -> bool:
        return self.index == self.count - 1

    @property
    def rows(self) -> slice:
        """Which samples of the batch these are."""
        return slice(self.size * self.index // self.count, self.size * (self.index + 1) // self.count)

    @property
    def share(self) -> float:
        """Of the batch's samples."""
        return (self.rows.stop - self.rows.start) / self.size

    @property
    def least(self) -> int:
        """Samples in the smallest part."""
        return self.size // self.count

    def of(self, batch: TaskBatch) -> TaskBatch:
        """The samples of this part, of the only part the batch itself."""
        return batch if self.count == 1 else batch.part(self.rows)


WHOLE = Part()


def parts(size: int, count: int) -> Iterator[Part]:
    """``count`` parts of a batch; never more than it has samples."""
    count = min(count, size)
    return (Part(i, count, size) for i in range(count))


class TrainingOptimizer(Interface):
    """An optimiser as the loop uses it."""

    param_groups: list[dict]

    def set_lr(self, lr: float, momentum: float | None) -> None:
        """Learning rate and, where it moves, momentum of the next updates."""

    def backward_and_step(self, losses: Losses, part: Part = WHOLE) -> None:
        """Add the gradients of ``losses`` of a part of the batch, and with the last part make the update."""

    def restart(self) -> None:
        """Forget the momentum."""

    def zero_grad(self) -> None: ...

    def step(self) -> object:
        """The update alone, by gradients that are there (not of DOT, which has two kinds)."""

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
    """

    parameters: list[nn.Parameter]
    lr: float
    config: Optimizer
    scaler: torch.amp.GradScaler
    slow: Collection[int] = ()

    def groups(self) -> list[dict[str, Any]]:
        """Parameters with weight decay and those without, at the full rate and at the backbone's."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in self.parameters:
            plain = self.config.decay_matrices_only and parameter.dim() < 2
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

    def backward_and_step(self, losses: Losses, part: Part = WHOLE) -> None:
        optimizer: Any = self
        if part.first:
            optimizer.zero_grad(set_to_none=True)
        total = losses.total() if part.count == 1 else losses.total() * part.share
        self.scaler.scale(total).backward()
        if not part.last:
            return
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)
        if self.clip:
            nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], self.clip)
        self.scaler.step(optimizer)
        self.scaler.update()
