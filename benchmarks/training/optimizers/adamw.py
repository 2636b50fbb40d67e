"""Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from kd_methods.contract import Losses

from ...config.recipe import Optimizer
from .optimizer import WHOLE, OptimizerKind, Part, parameter_groups, summed_step


class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay on the sum of all terms."""

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float,
        config: Optimizer,
        scaler: torch.amp.GradScaler,
        slow: Collection[int],
    ) -> None:
        groups, betas = parameter_groups(parameters, config, slow), (config.momentum, config.beta2)
        super().__init__(groups, lr=lr, betas=betas, weight_decay=config.weight_decay, fused=True)
        self.clip, self.scaler = config.clip, scaler

    def set_lr(self, lr: float, momentum: float | None) -> None:
        for group in self.param_groups:
            rate = lr * group.get("factor", 1.0)
            group.update(lr=rate, betas=group["betas"] if momentum is None else (momentum, group["betas"][1]))

    def restart(self) -> None:
        self.state.clear()

    def backward_and_step(self, losses: Losses, part: Part = WHOLE) -> None:
        summed_step(self, losses, part)


OPTIMIZERS = (OptimizerKind("adamw", AdamW),)
