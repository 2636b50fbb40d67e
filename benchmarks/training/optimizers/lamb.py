"""LAMB: Adam whose steps are scaled by tensor."""

from __future__ import annotations

from .optimizer import OptimizerKind, OptimizerSetup, SummedTerms, TrainingOptimizer


def build(setup: OptimizerSetup) -> TrainingOptimizer:
    """timm's LAMB on the sum of all terms; gradients are clipped as for every optimiser, by the protocol's ``clip``."""
    from timm.optim import Lamb  # a plan asks whether there is such an optimiser, and need not wait for timm

    class LAMB(SummedTerms, Lamb):
        def restart(self) -> None:
            super().restart()
            for group in self.param_groups:  # timm counts the steps there
                group.pop("step", None)

    config = setup.config
    betas, decay = (config.momentum, config.beta2), config.weight_decay
    optimizer = LAMB(setup.groups(), lr=setup.lr, betas=betas, weight_decay=decay, max_grad_norm=None)
    optimizer.clip, optimizer.scaler = config.clip, setup.scaler
    return optimizer


OPTIMIZERS = (OptimizerKind("lamb", build),)
