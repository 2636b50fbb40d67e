"""A method's code, kept apart from the other cells of its group.

The cells of a group have the teacher, the batches and the process in common, and each has to end in the bits in which
it would end alone. So whatever code of a method runs, it gets tensors of its own, and finds and leaves the process as
it was:

* Tensors are lent (:class:`Loans`): the borrower's copy shares memory with the original until somebody writes to one of
  them, in place, through ``.data``, an array of numpy or a raw pointer. What a method does to it reaches nobody else.
* Settings of the process are put back (:mod:`benchmarks.common.process.settings`), random numbers are the cell's own.

What would have reached others is an error of that cell, also where it is alone: an :class:`Interference` that names the
method and what it changed. A method that patches functions of torch or of this suite is beyond that.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from kd_methods.contract import Batch, Needs, Network, Outputs

from ..common.memory import out_of_memory
from ..common.process import settings as process_settings
from .failures import of_cell

Net = TypeVar("Net", bound=Network)


class Interference(Exception):
    """A method changed what it shares with other cells. They did not notice; its own result counts for nothing."""


# Torch's own copy on write; a version of torch without it copies at once, and every loan is compared.
_lazy_clone: Callable[[Tensor], Tensor] = getattr(torch, "_lazy_clone", torch.clone)
_never_written: Callable[[Tensor], bool] = getattr(torch._C, "_is_cow_tensor", lambda tensor: False)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def copied(original: Tensor) -> Tensor:
    """A copy that shares memory with the original until one of them is written to, in whatever way."""
    try:
        return _lazy_clone(original.detach())
    except RuntimeError as error:  # memory that is not torch's own, a mapped file or an array of numpy
        if out_of_memory(error):
            raise
        return original.detach().clone()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if (a.dtype, a.shape, a.device) != (b.dtype, b.shape, b.device):
        return False
    bits = _BITS.get(a.element_size())
    return torch.equal(a.view(bits), b.view(bits)) if bits else torch.equal(a, b)


class _Loan(NamedTuple):
    name: str
    original: Tensor
    copy: Tensor
    version: int


class Loans:
    """Tensors in the hands of one cell."""

    def __init__(self) -> None:
        self._loans: list[_Loan] = []
        self._networks: list[tuple[str, Network, list[int]]] = []

    def tensor(self, name: str, original: Tensor) -> Tensor:
        """A copy that costs nothing until it is written to, and is compared with the original only after that."""
        lent = copied(original)
        self._loans.append(_Loan(name, original, lent, lent._version))
        return lent

    def output(self, unit: str, value: Any) -> Any:
        """As :meth:`tensor`, for what the teacher's unit gave: a tensor, or some in a tuple."""
        lend = functools.partial(self.tensor, f"the teacher's output '{unit}'")
        return lend(value) if isinstance(value, Tensor) else tree_map_only(Tensor, lend, value)

    def network(self, name: str, original: Net) -> Net:
        """A frozen copy of a network with modules of its own and lent tensors, its folded copy included."""
        original.fold_batch_norms()
        original.shapes("pooled")  # so that every copy knows its shapes
        memo: dict[int, Any] = {}
        for net in (original, original.fold_batch_norms()):
            for key, tensor in (*net.named_parameters(), *net.named_buffers()):
                if id(tensor) not in memo:
                    lent = copied(tensor)
                    if not _never_written(lent):  # memory that is not torch's own: once it is, the next copy is lazy
                        tensor.data = lent.clone()
                    if isinstance(tensor, nn.Parameter):
                        lent = nn.Parameter(lent, requires_grad=False)
                    memo[id(tensor)] = lent
                    self._loans.append(_Loan(f"{name}'s {key}", tensor.detach(), lent, lent._version))
        network = copy.deepcopy(original, memo).eval()
        self._networks.append((name, network, _tensors(network)))
        return network

    def changed(self) -> list[str]:
        """Names of what is not as it was lent."""
        changes = []
        for name, network, tensors in self._networks:
            if any(module.training for module in network.modules()):
                changes.append(f"{name}'s mode (to training)")
            if any(p.requires_grad or p.grad is not None for p in network.parameters()):
                changes.append(f"{name}'s gradients")
            if tensors != _tensors(network):
                changes.append(f"{name}'s layers")
        for name, original, lent, version in self._loans:
            if lent._version != version or not (_never_written(lent) or _same_bits(lent, original)):
                changes.append(name)
        return list(dict.fromkeys(changes))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _tensors(network: Network) -> list[int]:
    return [id(tensor) for tensor in (*network.parameters(), *network.buffers())]


def lend(batch: Batch, teacher: Outputs | None, needs: Needs) -> tuple[Batch, Outputs | None, Loans]:
    """A batch and the teacher's outputs for one cell: what it needs of what its group has."""
    loans, two = Loans(), needs.views > 1
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    if not two:
        tensors.pop("second", None)
    tensors_lent: dict[str, Any] = {name: loans.tensor(f"the batch's {name}", value) for name, value in tensors.items()}
    batch_lent = replace(batch, **{"second": None, **tensors_lent})
    if teacher is None or not (needs.teacher or needs.teacher_units):
        return batch_lent, None, loans
    return batch_lent, teacher.only(needs.teacher, needs.teacher_units, two, loans.output), loans


@contextmanager
def apart(method: str, loans: Loans) -> Iterator[None]:
    """Context in which a method's code runs; the settings of the process are afterwards what they were.

    Raises:
        Interference: they were not, or what the method was lent has been changed. An error of the method's own is the
            cause of it then.
    """
    before = process_settings.read()
    try:
        yield
    except BaseException as error:
        changes = _put_back(before, loans)
        if changes and of_cell(error):
            raise Interference(f"method '{method}' changed {changes}") from error
        raise
    if changes := _put_back(before, loans):
        raise Interference(f"method '{method}' changed {changes}")


def _put_back(settings: list[Any], loans: Loans) -> str:
    """Restore the settings; says what was changed of them and of the loans."""
    changes = []
    if names := process_settings.restore(settings):
        changes.append(f"settings of the process: {_listed(names)}")
    if names := loans.changed():
        changes.append(f"what its group shares: {_listed(names)}")
    return "; ".join(changes)
