"""Which device computes, and whether fp32 is fp32 on it."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable
from typing import Any

import torch

from kd_methods.errors import UserError

from .memory import keep_memory

_PRECISION = {
    "cpu": ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
    "cuda": ("NVIDIA_TF32_OVERRIDE",),
}
"""Variables that overrule the precision which a program asks for, by the device."""

_SWITCHES = {
    "cpu": ("mkldnn.matmul", "mkldnn.conv"),
    "cuda": ("cuda.matmul", "cudnn.conv"),
}
"""What torch.backends has a precision of fp32 for, by the device."""

_FP32_ERROR = 5e-5
"""Relative error that products in fp32 stay far below, and those of TensorFloat-32 and bf16 far above."""


def device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: give auto, cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: give auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda":
        # The protocols say fp32, and mean it: TensorFloat-32 keeps 10 bits of the mantissa.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    keep_memory(chosen)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return chosen


def check_enough(first: torch.device, count: int) -> None:
    """Whether there is a device for each of the processes that share a cell's batches.

    Raises:
        UserError: there are fewer GPUs from ``first`` on.
    """
    if first.type == "cuda" and count > 1:
        present = torch.cuda.device_count() - (first.index or 0)
        if count > present:
            raise UserError(f"{count} processes need a GPU each, and there are {present}: --processes {present}")


def of_processes(first: torch.device, count: int) -> list[torch.device]:
    """The devices of processes that share a cell's batches: a GPU each, from ``first`` on, or all the CPU."""
    if first.type == "cpu":
        return [first] * count
    return [torch.device(first.type, (first.index or 0) + rank) for rank in range(count)]


def check_precision(chosen: torch.device) -> None:
    """Raise where fp32 is not fp32: the precision is the protocol's, and as such in each cell's key.

    Raises:
        UserError: a variable or a switch of torch overrules it; the message names it.
    """
    if overruling := overruled(chosen):
        raise UserError(
            f"{', '.join(overruling)}: this overrules the precision of products, which is for the protocol alone to "
            "say; unset it, or choose with --precision"
        )


@functools.cache
def overruled(chosen: torch.device) -> tuple[str, ...]:
    """What overrules the precision of products in fp32 here; empty where they are what their name says.

    Variables count where they are set; all that a program can switch by what comes out of a product and a convolution.
    """
    values = {name: os.environ.get(name, "") for name in _PRECISION[chosen.type]}
    if variables := [f"{name}={value}" for name, value in values.items() if value.upper() not in ("", "STRICT")]:
        return tuple(variables)
    if (error := _fp32_error(chosen)) < _FP32_ERROR:
        return ()
    switched = []
    for name in _SWITCHES[chosen.type]:
        value = getattr(operator.attrgetter(name)(torch.backends), "fp32_precision", "none")  # since torch 2.9
        if value not in ("none", "ieee"):
            switched.append(f"torch.backends.{name}.fp32_precision = {value}")
    return tuple(switched) or (f"a product in fp32 is off by {error:.0e}",)


def _fp32_error(chosen: torch.device) -> float:
    """The largest error of a matrix product and a convolution in fp32, relative to the largest value."""
    generator = torch.Generator().manual_seed(0)
    usual: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    maps, kernels = (torch.randn(*shape, **usual) for shape in ((8, 64, 12, 12), (64, 64, 3, 3)))
    matrix = maps.reshape(-1, 256)
    errors = []
    products: tuple[tuple[Callable[..., torch.Tensor], torch.Tensor, torch.Tensor], ...]
    products = (torch.matmul, matrix, matrix.T), (torch.conv2d, maps, kernels)
    with torch.no_grad():
        for product, left, right in products:
            exact = product(left.double(), right.double())
            computed = product(left.to(chosen), right.to(chosen)).double().cpu()
            errors.append(float((computed - exact).abs().max() / exact.abs().max()))
    return max(errors)
