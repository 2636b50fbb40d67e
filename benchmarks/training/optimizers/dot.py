"""The distillation-oriented trainer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kd_methods.contract import Losses

from .optimizer import WHOLE, OptimizerKind, OptimizerSetup, Part


class DOT(torch.optim.Optimizer):
    """Distillation-oriented trainer: task and distillation terms have a momentum each, m - delta and m + delta.

    Zhao et al. 2023, algorithm 1, as mdistiller ``engine/dot.py`` has it: weight decay goes with the task gradients;
    parameters that only one kind of terms reaches use m, and have weight decay.
    """

    def __init__(self, setup: OptimizerSetup) -> None:
        super().__init__(setup.parameters, {"lr": setup.lr})
        config = setup.config
        self.momentum, self.delta, self.weight_decay = config.momentum, config.delta, config.weight_decay
        self.restart()

    def set_lr(self, lr: float, momentum: float | None) -> None:
        self.param_groups[0]["lr"] = lr
        self.momentum = self.momentum if momentum is None else momentum

    def restart(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {kind: torch.zeros_like(parameter) for kind in ("task", "distill")}

    def backward_and_step(self, losses: Losses, part: Part = WHOLE) -> None:
        parameters, lr = self.param_groups[0]["params"], self.param_groups[0]["lr"]
        task = _gradients(losses.task.values(), parameters, keep=bool(losses.distill))
        distill = _gradients(losses.distill.values(), parameters)
        with torch.no_grad():
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
    terms: Iterable[Tensor], parameters: list[nn.Parameter], keep: bool = False
) -> tuple[Tensor | None, ...] | list[None]:
    terms = list(terms)
    if not terms:
        return [None] * len(parameters)
    return torch.autograd.grad(sum(terms[1:], terms[0]), parameters, retain_graph=keep, allow_unused=True)


OPTIMIZERS = (OptimizerKind("dot", DOT, scales=False),)
