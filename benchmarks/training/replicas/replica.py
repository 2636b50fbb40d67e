"""Processes that train one cell together: each has a part of every batch, and all of them make the same update.

What torch's DistributedDataParallel does while gradients are computed is done after that, in one message: gradients
are summed in an order that does not depend on how a run came about, methods may call their networks in whatever way,
and parameters that a step leaves alone stay so.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = datetime.timedelta(days=30)
"""How long a process waits for the others, one of which may compute for hours what the others then read."""


class PartnerLost(KeyboardInterrupt):
    """Another process of the same cell is gone; what it was says that one, or who started it."""


def _together(work: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(work)
    def with_partners(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        except (RuntimeError, dist.DistError) as error:
            raise PartnerLost(str(error)) from error

    return with_partners


@dataclass(frozen=True)
class Replica:
    """This process among those that train a cell.

    rank   its number, from 0; the first one writes down the results
    count  how many there are
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    @_together
    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in one message for each type of numbers."""
        if self.count == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor)
        for alike in kinds.values():
            flat = torch.cat([tensor.detach().flatten() for tensor in alike])
            dist.all_reduce(flat)
            for tensor, total in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.detach().copy_(total.view_as(tensor))

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all processes."""
        if self.count > 1:
            self.sum_(tensors)
            for tensor in tensors:
                tensor.detach().div_(self.count)

    def gathered(self, local: Tensor, lengths: Sequence[int]) -> Tensor:
        """The samples of all processes, of which each has ``lengths``; the gradient goes to each one's own.

        What follows is the same in all processes, and its gradient is counted as often as there are processes.
        """
        return _Gathered.apply(local, self, list(lengths))  # type: ignore[no-any-return, no-untyped-call]

    @_together
    def agreed(self, answer: bool) -> bool:
        """What the first process answers."""
        if self.count == 1:
            return answer
        word = torch.tensor([answer], dtype=torch.uint8)
        dist.broadcast(word, 0)
        return bool(word)

    @_together
    def meet(self) -> None:
        """Wait for all others to come here."""
        if self.count > 1:
            dist.all_reduce(torch.zeros(1))


ALONE = Replica()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, replica: Replica, lengths: list[int]) -> Tensor:
        start = sum(lengths[: replica.rank])
        ctx.rows, ctx.count = slice(start, start + len(local)), replica.count
        kind = torch.uint8 if local.dtype == torch.bool else local.dtype
        whole = local.new_zeros(sum(lengths), *local.shape[1:], dtype=kind)
        whole[ctx.rows] = local
        replica.sum_([whole])
        return whole.to(local.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.rows] * ctx.count, None, None


@contextmanager
def joined(rank: int, count: int, rendezvous: Path, device: torch.device) -> Iterator[Replica]:
    """Join the other processes, which find each other by a file that is not there yet."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, f"file://{rendezvous}", timeout=PATIENCE, rank=rank, world_size=count)
    try:
        yield Replica(rank, count)
    finally:
        dist.destroy_process_group()
