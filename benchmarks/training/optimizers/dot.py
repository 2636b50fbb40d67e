"""The distillation-oriented trainer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from kd_methods.contract import Losses

from .optimizer import WHOLE, OptimizerKind, OptimizerSetup, Part

Gradients = Sequence[Tensor | None]
"""By parameter; None where the terms do not reach it."""


class DOT(torch.optim.Optimizer):
    """Distillation-oriented trainer: task and distillation terms have a momentum each, m - delta and m + delta.

    Zhao et al. 2023, algorithm 1, as mdistiller ``engine/dot.py`` has it: weight decay goes with the task gradients;
    parameters that only one kind of terms reaches use m, and have weight decay.
    """

    divides = True

    def __init__(self, setup: OptimizerSetup) -> None:
        super().__init__(setup.parameters, {"lr": setup.lr})
        config = setup.config
        self.momentum, self.delta, self.weight_decay = config.momentum, config.delta, config.weight_decay
        self._earlier: tuple[Gradients, Gradients] = ((), ())
        self.restart()

    def set_lr(self, lr: float, momentum: float | None) -> None:
        self.param_groups[0]["lr"] = lr
        self.momentum = self.momentum if momentum is None else momentum

    def restart(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {kind: torch.zeros_like(parameter) for kind in ("task", "distill")}

    def backward(self, losses: Losses, part: Part = WHOLE) -> None:
        parameters, share = self.param_groups[0]["params"], None if part.whole else part.share
        task = _gradients(losses.task.values(), parameters, share, keep=bool(losses.distill))
        distill = _gradients(losses.distill.values(), parameters, share)
        if not part.first:
            task, distill = (
                _added(earlier, gradients) for earlier, gradients in zip(self._earlier, (task, distill), strict=True)
            )
        self._earlier = (task, distill)

    @torch.no_grad()
    def update(self, part: Part = WHOLE) -> None:
        (task, distill), self._earlier = self._earlier, ((), ())
        part.replica.sum_(gradient for kind in (task, distill) for gradient in kind if gradient is not None)
        parameters, lr = self.param_groups[0]["params"], self.param_groups[0]["lr"]
        for parameter, task_gradient, distill_gradient in zip(parameters, task, distill, strict=True):
            change = self.delta if task_gradient is not None and distill_gradient is not None else 0.0
            decayed = False
            for kind, gradient, shift in (("task", task_gradient, -change), ("distill", distill_gradient, change)):
                if gradient is not None:
                    buffer = self.state[parameter][kind].mul_(self.momentum + shift).add_(gradient)
                    if not decayed:
                        buffer.add_(parameter, alpha=self.weight_decay)
                        decayed = True
            if task_gradient is not None:
                parameter.sub_(self.state[parameter]["task"], alpha=lr)
            if distill_gradient is not None:
                parameter.sub_(self.state[parameter]["distill"], alpha=lr)


def _gradients(
    terms: Iterable[Tensor], parameters: list[nn.Parameter], share: float | None, keep: bool = False
) -> Gradients:
    """Of the sum of some terms, by which a ``share`` counts where they are of a part of the batch."""
    terms = list(terms)
    if not terms:
        return [None] * len(parameters)
    total = sum(terms[1:], terms[0])
    if share is None:
        return torch.autograd.grad(total, parameters, retain_graph=keep, allow_unused=True)
    gradients = torch.autograd.grad(total * share, parameters, retain_graph=keep, allow_unused=True)
    # Own memory: others are added in place, and autograd may give views, or one tensor for two parameters.
    return [None if one is None else one.clone(memory_format=torch.contiguous_format) for one in gradients]


def _added(earlier: Gradients, gradients: Gradients) -> Gradients:
    """With what earlier parts of the batch gave; a parameter that this part does not reach keeps it."""
    pairs = zip(earlier, gradients, strict=True)
    return [before if now is None else now if before is None else now.add_(before) for before, now in pairs]


OPTIMIZERS = (OptimizerKind("dot", DOT, scales=False),)
