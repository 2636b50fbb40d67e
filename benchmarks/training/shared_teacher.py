"""One pass of the frozen teacher over a batch, for all the cells of a group."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_methods.contract import Needs, Outputs

from ..config.protocol import Protocol
from ..networks import NetworkView
from ..tasks import TaskBatch, TaskData
from ..tasks.images import Normalisation
from . import compilation
from .isolation import Loans
from .precision import autocast


class SharedTeacher:
    """The frozen teacher's pass over a batch, kept as the union of what the cells of a group need.

    Args:
        network: the frozen teacher; its batch-norms are folded here, the methods see it as it is.
        normalisation: how the teacher wants its inputs.
        protocol: in whose precision it computes.
    """

    def __init__(self, network: NetworkView, normalisation: Normalisation, protocol: Protocol) -> None:
        self.network, self.normalisation, self.protocol = network, normalisation, protocol
        network.compiles = compilation.samples(protocol)
        self.logits: Tensor | None = None

    def lent(self, loans: Loans) -> NetworkView:
        """The network for the method of one cell."""
        return loans.network("the teacher", self.network)

    def store_logits(self, data: TaskData, seed: int) -> None:
        """Compute the logits of all training samples once; :meth:`outputs` has them from now on."""
        logits = []
        for batch in data.augmented(seed, self.protocol.batch_size):
            with torch.no_grad(), autocast(self.protocol, data.device):
                logits.append(self.network.fold_batch_norms()(batch.inputs(self.normalisation), fields=()).logits)
        self.logits = torch.cat(logits)

    def outputs(self, batch: TaskBatch, needs: Sequence[Needs]) -> Outputs | None:
        """One forward pass that keeps what any of ``needs`` reads, or None if none reads anything of a teacher."""
        reading = [each for each in needs if each.teacher or each.teacher_units]
        if not reading:
            return None
        at, fields = set[str](), set[str]()
        for each in reading:
            at.update(each.teacher_units)
            fields.update(name for name in each.teacher if name != "logits")
        network, taught = self.network.fold_batch_norms(), batch.as_taught()
        with torch.no_grad(), autocast(self.protocol, taught.inputs(self.normalisation).device):
            outputs = batch.answer(network(taught.inputs(self.normalisation), at=at, fields=fields))
            if views(reading) > 1:
                outputs = outputs.with_second(network(taught.inputs(self.normalisation, view=2), at=at, fields=fields))
        return outputs if self.logits is None else outputs.with_other_logits(self.logits[batch.student().indices])


def views(needs: Sequence[Needs]) -> int:
    """How many views of each image a group reads."""
    return max((each.views for each in needs), default=1)
