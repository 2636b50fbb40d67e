"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from kd_methods.contract import Losses

from ...config.recipe import Optimizer
from .optimizer import WHOLE, OptimizerKind, Part, parameter_groups, summed_step


class SGD(torch.optim.SGD):
    """Stochastic gradient descent on the sum of all terms."""

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float,
        config: Optimizer,
        scaler: torch.amp.GradScaler,
        slow: Collection[int],
    ) -> None:
        super().__init__(
            parameter_groups(parameters, config, slow),
            lr=lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.clip, self.scaler = config.clip, scaler
        self.restart()

    def set_lr(self, lr: float, momentum: float | None) -> None:
        for group in self.param_groups:
            rate = lr * group.get("factor", 1.0)
            group.update(lr=rate, momentum=group["momentum"] if momentum is None else momentum)

    def restart(self) -> None:
        # The fused kernel takes no mixture of parameters that have had a gradient and of those that get their first one
        # later (a stone that was not drawn); a momentum of zero is the same as none.
        for group in self.param_groups:
            if group["momentum"]:
                for parameter in group["params"]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def backward_and_step(self, losses: Losses, part: Part = WHOLE) -> None:
        summed_step(self, losses, part)


OPTIMIZERS = (OptimizerKind("sgd", SGD),)
