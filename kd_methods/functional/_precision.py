"""Losses in full precision whatever the networks computed in, and a normalisation without exploding gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(loss: Callable[P, R]) -> Callable[P, R]:
    """Run a loss in fp32 (fp64 inputs stay fp64), outside any autocast region of the caller."""

    @functools.wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(_tensors((*args, *kwargs.values()))).device.type
        with torch.autocast(device, enabled=False):
            return loss(*map(_widened, args), **{key: _widened(value) for key, value in kwargs.items()})  # type: ignore[arg-type]

    return wrapped


def unit(x: Tensor, dim: int = -1, eps: float = 1e-12) -> Tensor:
    """``x`` divided by its 2-norm along ``dim``.

    As ``F.normalize``, but vectors shorter than ``eps`` become zero and receive zero gradient; there they would
    receive one of the order of 1 / eps.
    """
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / norm.masked_fill(norm <= eps, math.inf)


def _tensors(values: Any) -> Any:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, list | tuple):
        return [_widened(item) for item in value]
    return value
