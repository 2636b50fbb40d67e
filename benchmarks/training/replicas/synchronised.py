"""Batch statistics of all processes that share a batch.

They are synchronised where torch's batch norm is called, so modules, their names and the keys of their state stay what
they are, and those that only use that function (timm's) are covered. torch's own SyncBatchNorm is for GPUs alone, and
is another module.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from .replica import Replica


def synchronised(replica: Replica, wanted: bool) -> AbstractContextManager[object]:
    """Context in which batch norms that follow the batch follow the samples of all processes, where it is ``wanted``.

    Every process has to call the same ones in the same order, each with samples of its own.
    """
    return _Synchronised(replica) if wanted else nullcontext()


class _Synchronised(TorchFunctionMode):
    def __init__(self, replica: Replica) -> None:
        super().__init__()
        self._replica = replica

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        called = self._batch_norm if function is nn.functional.batch_norm else function
        return called(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """As torch's of that name."""
        if not training:
            return nn.functional.batch_norm(
                input, running_mean, running_var, weight, bias, training=False, momentum=momentum, eps=eps
            )
        mean, variance, count = _statistics(input.detach(), self._replica)
        for running, value in ((running_mean, mean), (running_var, variance * (count / (count - 1)))):
            if running is not None:
                running.mul_(1 - momentum).add_(value, alpha=momentum)
        scale = (variance + eps).rsqrt()
        normalised: Tensor = _Normalised.apply(input, mean, scale, count, self._replica)  # type: ignore[no-untyped-call]
        for parameter, operation in ((weight, torch.mul), (bias, torch.add)):
            if parameter is not None:
                normalised = operation(normalised, _per_channel(parameter, input))
        return normalised.to(input.dtype)


def _statistics(x: Tensor, replica: Replica) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (C,) of each channel of all processes' ``x`` (N, C, ...), and how many values (1,) they are of.

    The same bits in every process. In one message, as Chan et al. 1979 put together the statistics of parts.
    """
    variance, mean = torch.var_mean(_wide(x), _dimensions(x), correction=0)
    count = mean.new_full((1,), x.numel() / x.shape[1])
    table = mean.new_zeros(replica.count, 2 * len(mean) + 1)
    table[replica.rank] = torch.cat((mean, variance, count))
    replica.sum_([table])
    means, variances, counts = table.split((len(mean), len(mean), 1), dim=1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    return mean, (counts * (variances + (means - mean) ** 2)).sum(0) / total, total


class _Normalised(torch.autograd.Function):
    """``(x - mean) * scale``, whose gradient knows that both depend on the samples of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, scale: Tensor, count: Tensor, replica: Replica) -> Tensor:
        ctx.save_for_backward(x, mean, scale, count)
        ctx.replica = replica
        return (_wide(x) - _per_channel(mean, x)) * _per_channel(scale, x)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, mean, scale, count = ctx.saved_tensors
        normalised = (_wide(x) - _per_channel(mean, x)) * _per_channel(scale, x)
        along = _dimensions(x)
        sums = torch.stack((gradient.sum(along), (gradient * normalised).sum(along)))
        ctx.replica.sum_([sums])
        first, second = (_per_channel(mean_of, x) for mean_of in sums / count)
        return ((gradient - first - normalised * second) * _per_channel(scale, x)).to(x.dtype), None, None, None, None


def _wide(x: Tensor) -> Tensor:
    """In fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _dimensions(x: Tensor) -> tuple[int, ...]:
    """All but that of the channels."""
    return (0, *range(2, x.dim()))


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) as it is broadcast over ``x`` (N, C, ...)."""
    return values.view(-1, *(1,) * (x.dim() - 2))
