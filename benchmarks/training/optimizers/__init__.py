"""Optimisers that make steps on a method's losses, by name. Each file here with ``OPTIMIZERS`` brings some."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from kd_methods.errors import UserError

from ...common.registry import Registry
from ...config.recipe import Optimizer
from .optimizer import WHOLE, OptimizerKind, OptimizerSetup, Part, SummedTerms, TrainingOptimizer, parts_of_batch

__all__ = [
    "OPTIMIZERS",
    "WHOLE",
    "OptimizerKind",
    "OptimizerSetup",
    "Part",
    "SummedTerms",
    "TrainingOptimizer",
    "build",
    "parts_of_batch",
    "register_optimizer",
]

OPTIMIZERS: Registry[OptimizerKind] = Registry("optimizer", __name__, "OPTIMIZERS")


def register_optimizer(kind: OptimizerKind) -> None:
    """Make an optimiser available by its name.

    Raises:
        UserError: another one already has that name.
    """
    OPTIMIZERS.register(kind)


def build(
    parameters: Iterable[nn.Parameter],
    lr: float,
    config: Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    slow: Iterable[nn.Parameter] = (),
    undecayed: Iterable[nn.Parameter] = (),
) -> TrainingOptimizer:
    """The optimiser that a protocol or a row names; ``scaler`` is for gradients in fp16.

    Parameters that are ``slow`` have the backbone's rate, those that are ``undecayed`` no weight decay.

    Raises:
        UserError: no such optimiser, or one that cannot have scaled gradients.
    """
    kind = OPTIMIZERS.get(config.name)
    trained = [parameter for parameter in dict.fromkeys(parameters) if parameter.requires_grad]
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    if scaler.is_enabled() and not kind.scales:
        raise UserError(f"optimizer {kind.name}: its gradients are not scaled for fp16; use bf16")
    return kind.build(OptimizerSetup(trained, lr, config, scaler, set(map(id, slow)), set(map(id, undecayed))))
