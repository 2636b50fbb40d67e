"""Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from ...config.recipe import Optimizer
from .optimizer import OptimizerKind, SummedTerms, parameter_groups


class AdamW(SummedTerms, torch.optim.AdamW):
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


OPTIMIZERS = (OptimizerKind("adamw", AdamW),)
