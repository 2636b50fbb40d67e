"""Optimisers that descend on a method's losses: one backward pass for all terms, or one for each kind (DOT)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from kd_methods.contract import Losses
from kd_methods.errors import UserError

from ..config.protocol import Optimizer
from ..tasks import TaskBatch


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


class Descent(Interface):
    """An optimiser as the loop uses it."""

    param_groups: list[dict]

    def set_pace(self, lr: float, momentum: float | None) -> None:
        """Learning rate and, where it moves, momentum of the next updates."""

    def descend(self, losses: Losses, part: Part = WHOLE) -> None:
        """Add the gradients of ``losses`` of a part of the batch, and with the last part make the update."""

    def restart(self) -> None:
        """Forget the momentum."""

    def zero_grad(self) -> None: ...

    def step(self) -> object:
        """The update alone, by gradients that are there (not of DOT, which has two kinds)."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> None: ...


def _groups(parameters: list[nn.Parameter], config: Optimizer, slow: Collection[int]) -> list[dict[str, Any]]:
    """Parameters with weight decay and those without, at the full rate and at the backbone's."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in parameters:
        plain = config.decay_matrices_only and parameter.dim() < 2
        groups.setdefault((id(parameter) in slow, plain), []).append(parameter)
    return [
        {
            "params": groups[late, plain],
            "weight_decay": 0.0 if plain else config.weight_decay,
            **({"factor": config.backbone} if late else {}),
        }
        for late, plain in sorted(groups)
    ]


def _descend(optimizer: SGD | AdamW, losses: Losses, part: Part) -> None:
    if part.first:
        optimizer.zero_grad(set_to_none=True)
    total = losses.total() if part.count == 1 else losses.total() * part.share
    optimizer.scaler.scale(total).backward()
    if not part.last:
        return
    if optimizer.scaler.is_enabled():
        optimizer.scaler.unscale_(optimizer)
    if optimizer.clip:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], optimizer.clip)
    optimizer.scaler.step(optimizer)
    optimizer.scaler.update()


class SGD(torch.optim.SGD):
    """Stochastic gradient descent on the sum of all terms."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, config: Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        super().__init__(
            groups,
            lr=lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.clip, self.scaler = config.clip, scaler
        self.restart()

    def set_pace(self, lr: float, momentum: float | None) -> None:
        for group in self.param_groups:
            pace = lr * group.get("factor", 1.0)
            group.update(lr=pace, momentum=group["momentum"] if momentum is None else momentum)

    def restart(self) -> None:
        # The fused kernel takes no mixture of parameters that have had a gradient and of those that get their first one
        # later (a stone that was not drawn); a momentum of zero is the same as none.
        for group in self.param_groups:
            if group["momentum"]:
                for parameter in group["params"]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def descend(self, losses: Losses, part: Part = WHOLE) -> None:
        _descend(self, losses, part)


class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay on the sum of all terms."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, config: Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        betas = (config.momentum, config.beta2)
        super().__init__(groups, lr=lr, betas=betas, weight_decay=config.weight_decay, fused=True)
        self.clip, self.scaler = config.clip, scaler

    def set_pace(self, lr: float, momentum: float | None) -> None:
        for group in self.param_groups:
            pace = lr * group.get("factor", 1.0)
            group.update(lr=pace, betas=group["betas"] if momentum is None else (momentum, group["betas"][1]))

    def restart(self) -> None:
        self.state.clear()

    def descend(self, losses: Losses, part: Part = WHOLE) -> None:
        _descend(self, losses, part)


class DOT(torch.optim.Optimizer):
    """Distillation-oriented trainer: task and distillation terms have a momentum each, m - delta and m + delta.

    Zhao et al. 2023, algorithm 1, as mdistiller ``engine/dot.py`` has it: weight decay goes with the task gradients;
    parameters that only one kind of terms reaches use m, and have weight decay.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, config: Optimizer) -> None:
        super().__init__(parameters, {"lr": lr})
        self.momentum, self.delta, self.weight_decay = config.momentum, config.delta, config.weight_decay
        self.restart()

    def set_pace(self, lr: float, momentum: float | None) -> None:
        self.param_groups[0]["lr"] = lr
        self.momentum = self.momentum if momentum is None else momentum

    def restart(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {kind: torch.zeros_like(parameter) for kind in ("task", "distill")}

    def descend(self, losses: Losses, part: Part = WHOLE) -> None:
        parameters, lr = self.param_groups[0]["params"], self.param_groups[0]["lr"]
        task = _gradients(losses.task.values(), parameters, keep=bool(losses.distill))
        distill = _gradients(losses.distill.values(), parameters)
        with torch.no_grad():
            for parameter, own, taught in zip(parameters, task, distill, strict=True):
                change = self.delta if own is not None and taught is not None else 0.0
                decayed = False
                for kind, gradient, shift in (("task", own, -change), ("distill", taught, change)):
                    if gradient is not None:
                        buffer = self.state[parameter][kind].mul_(self.momentum + shift).add_(gradient)
                        if not decayed:
                            buffer.add_(parameter, alpha=self.weight_decay)
                            decayed = True
                if own is not None:
                    parameter.sub_(self.state[parameter]["task"], alpha=lr)
                if taught is not None:
                    parameter.sub_(self.state[parameter]["distill"], alpha=lr)


def _gradients(
    terms: Iterable[Tensor], parameters: list[nn.Parameter], keep: bool = False
) -> tuple[Tensor | None, ...] | list[None]:
    terms = list(terms)
    if not terms:
        return [None] * len(parameters)
    return torch.autograd.grad(sum(terms[1:], terms[0]), parameters, retain_graph=keep, allow_unused=True)


_KINDS: dict[str, type[SGD] | type[AdamW]] = {"sgd": SGD, "adamw": AdamW}


def build(
    parameters: Iterable[nn.Parameter],
    lr: float,
    config: Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    slow: Iterable[nn.Parameter] = (),
) -> Descent:
    """The optimiser that a protocol or a row names; ``scaler`` is for gradients in fp16.

    Parameters that are ``slow`` have the backbone's rate.

    Raises:
        UserError: an optimiser that cannot have scaled gradients.
    """
    trained = [parameter for parameter in dict.fromkeys(parameters) if parameter.requires_grad]
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    if config.name == "dot":
        if scaler.is_enabled():
            raise UserError("optimizer dot: its two kinds of gradients are not scaled for fp16; use bf16")
        return DOT(trained, lr, config)
    return _KINDS[config.name](_groups(trained, config, set(map(id, slow))), lr, config, scaler)
