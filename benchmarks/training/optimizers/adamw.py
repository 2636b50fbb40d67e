"""Adam with decoupled weight decay."""

from __future__ import annotations

import torch

from .optimizer import OptimizerKind, OptimizerSetup, SummedTerms


class AdamW(SummedTerms, torch.optim.AdamW):
    """Adam with decoupled weight decay on the sum of all terms."""

    def __init__(self, setup: OptimizerSetup) -> None:
        config = setup.config
        betas = config.momentum, config.beta2
        super().__init__(setup.groups(), lr=setup.lr, betas=betas, weight_decay=config.weight_decay, fused=True)
        self.clip, self.scaler = config.clip, setup.scaler


OPTIMIZERS = (OptimizerKind("adamw", AdamW),)
