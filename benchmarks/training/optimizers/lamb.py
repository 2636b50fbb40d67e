"""LAMB: Adam whose steps are scaled by tensor."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from ...config.recipe import Optimizer
from .optimizer import OptimizerKind, SummedTerms, TrainingOptimizer, parameter_groups


def build(
    parameters: list[nn.Parameter],
    lr: float,
    config: Optimizer,
    scaler: torch.amp.GradScaler,
    slow: Collection[int],
) -> TrainingOptimizer:
    """timm's LAMB on the sum of all terms; gradients are clipped as for every optimiser, by the protocol's ``clip``."""
    from timm.optim import Lamb  # a plan asks whether there is such an optimiser, and need not wait for timm

    class LAMB(SummedTerms, Lamb):
        def restart(self) -> None:
            super().restart()
            for group in self.param_groups:  # timm counts the steps there
                group.pop("step", None)

    groups, betas = parameter_groups(parameters, config, slow), (config.momentum, config.beta2)
    optimizer = LAMB(groups, lr=lr, betas=betas, weight_decay=config.weight_decay, max_grad_norm=None)
    optimizer.clip, optimizer.scaler = config.clip, scaler
    return optimizer


OPTIMIZERS = (OptimizerKind("lamb", build),)
