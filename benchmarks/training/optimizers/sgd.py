"""Stochastic gradient descent."""

from __future__ import annotations

import torch

from .optimizer import OptimizerKind, OptimizerSetup, SummedTerms


class SGD(SummedTerms, torch.optim.SGD):
    """Stochastic gradient descent on the sum of all terms."""

    def __init__(self, setup: OptimizerSetup) -> None:
        config = setup.config
        super().__init__(
            setup.groups(),
            lr=setup.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.clip, self.scaler = config.clip, setup.scaler
        self.restart()

    def restart(self) -> None:
        # The fused kernel takes no mixture of parameters that have had a gradient and of those that get their first one
        # later (a stone that was not drawn); a momentum of zero is the same as none.
        for group in self.param_groups:
            if group["momentum"]:
                for parameter in group["params"]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


OPTIMIZERS = (OptimizerKind("sgd", SGD),)
