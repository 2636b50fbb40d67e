"""A cell's student and method, put together as they are trained, and what of them is deployed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

import kd_methods
from kd_methods.contract import DataInfo, Method, Network

from ..networks import check_unchanged, imagenet_start, init_from
from ..store.cell import Cell
from ..store.make_cell import Distillation


class Assembly:
    """Student and method, on one device.

    Args:
        chosen: the method and its settings.
        student: the network to train, as it is built.
        teacher: the frozen teacher, or None.
        info: of the training set.
        device: where the method's modules and what it adds to the student go.
        memory_format: of the method's convolutions.

    Raises:
        UserError: the method is not for these networks.
    """

    def __init__(
        self,
        chosen: Cell | Distillation,
        student: Network,
        teacher: Network | None,
        info: DataInfo,
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> None:
        self.method: Method = kd_methods.build(chosen.method, student, teacher, info, **chosen.settings)
        self.method.to(device).to(memory_format=memory_format)
        self.student = self.method.adapt(student).to(device)

    @cached_property
    def deployed(self) -> nn.Module:
        """What maps inputs to logits in the end; it shares its tensors with what is trained."""
        return self.method.deployed(self.student)


def begin(
    cell: Cell, student: Network, teacher: Network | None, weights: Mapping[str, Tensor] | None = None
) -> Sequence[str]:
    """Give a student that is built what its cell starts from: parts of its teacher, or ``weights`` of ImageNet.

    Returns:
        What of the student those weights do not have, by name: it is as it was drawn.

    Raises:
        Changed: the weights of the student's own source are not those with which the cell was planned.
        UserError: the student cannot start from that teacher.
    """
    check_unchanged(cell.student, cell.plugins)
    if cell.init and teacher is not None:  # a cell that starts from its teacher has one
        init_from(cell.student, student, teacher, cell.init)
    return imagenet_start.begin(student.module, weights) if weights else ()
