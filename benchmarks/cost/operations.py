"""Floating-point operations of training steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kd_methods.contract import Needs, Outputs

from ..config.protocol import Protocol
from ..networks import NetworkView, attention
from ..tasks import TaskBatch
from ..tasks.images import Normalisation
from ..training.isolation import Loans
from ..training.shared_teacher import SharedTeacher, views


class Operations(TorchDispatchMode):
    """Context that counts as torch's ``FlopCounterMode``, which takes twice as long: it also says in which module.

    ``total`` is what was counted so far.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # with it comes triton

        super().__init__()
        self.total = 0
        self._formulas = {**flop_registry, **attention(), torch.ops.aten.convolution_backward: _convolution_backward}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if formula := self._formulas.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=output)
        return output


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any, **_: Any) -> int:
    """Both products of a convolution's backward pass, if wanted; torch's own count leaves out the groups."""
    transposed, output_mask = rest[4], rest[7]
    spatial = (x if transposed else grad).shape[2:]
    return 2 * weight.numel() * math.prod(spatial) * len(x) * (output_mask[0] + output_mask[1])


class CountedTeacher(SharedTeacher):
    """A teacher for counting alone: it makes its pass once for cells that read the same, and lends one copy to all.

    ``operations`` are those of the pass that was asked for last.
    """

    def __init__(self, network: NetworkView, normalisation: Normalisation, protocol: Protocol) -> None:
        super().__init__(network, normalisation, protocol)
        self.operations = 0
        self._passes: dict[Any, tuple[Outputs | None, int]] = {}
        self._lent = Loans().network("the teacher", network)

    def outputs(self, batch: TaskBatch, needs: Sequence[Needs]) -> Outputs | None:
        read = frozenset(name for each in needs for name in (*each.teacher, *each.teacher_units)), views(needs)
        if read not in self._passes:
            with Operations() as counted:
                outputs = super().outputs(batch, needs)
            self._passes[read] = outputs, counted.total
        outputs, self.operations = self._passes[read]
        return outputs

    def lent(self, loans: Loans) -> NetworkView:
        return self._lent
