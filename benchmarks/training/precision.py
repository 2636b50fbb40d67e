"""The precision in which networks compute: a protocol's choice, the same for teacher, student and evaluation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from ..config.protocol import Protocol

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(protocol: Protocol, device: torch.device) -> AbstractContextManager[object]:
    """Context in which networks and the learned parts of methods run.

    TF32 is a switch of the process and not of a context; it is set to what the protocol says.
    """
    if device.type == "cuda":
        allowed = protocol.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    if protocol.precision not in _TYPES:
        return nullcontext()
    return torch.autocast(device.type, _TYPES[protocol.precision])


def scaler(protocol: Protocol, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss where gradients in fp16 would vanish; for other precisions it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=protocol.precision == "fp16")
