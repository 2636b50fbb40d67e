"""The precision in which networks compute: a protocol's choice, the same for teacher, student and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from kd_methods.errors import UserError

from ..common.devices import check_precision
from ..config.protocol import Protocol

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check(protocol: Protocol, device: torch.device) -> None:
    """Raise UserError where the device does not have the protocol's precision, or this process computes in another.

    CPUs have no TF32, and would compute in fp32 what is recorded as TF32; products in fp16 take them hundreds of times
    as long as in fp32.
    """
    check_precision(device)
    if device.type == "cpu" and protocol.precision in ("fp16", "tf32"):
        raise UserError(f"precision {protocol.precision} is for GPUs; on a CPU use bf16 or fp32 (--precision)")


def autocast(protocol: Protocol, device: torch.device) -> AbstractContextManager[object]:
    """Context in which networks and the learned modules of methods run."""
    set_tf32(protocol, device)
    if protocol.precision not in _TYPES:
        return nullcontext()
    return torch.autocast(device.type, _TYPES[protocol.precision])


def set_tf32(protocol: Protocol, device: torch.device) -> None:
    """TF32 is a switch of the process and not of a context; it is set to what the protocol says."""
    if device.type == "cuda":
        allowed = protocol.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


@contextmanager
def without_tf32(device: torch.device) -> Iterator[None]:
    """Inside, products of fp32 are such, whatever the protocol says: what is computed is kept for all protocols."""
    switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul) if device.type == "cuda" else ()
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def scaler(protocol: Protocol, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss where gradients in fp16 would vanish; for other precisions it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=protocol.precision == "fp16")
