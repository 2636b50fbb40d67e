"""The cell that trains a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kd_methods.errors import UserError

from .. import networks
from ..common.places import PROGRAM
from ..config.protocol import Protocol
from ..store.cell import Cell
from ..store.make_cell import student_cell
from .zoo import Zoo


def teacher_cell(network: str, protocol: Protocol, data: str, plugins: Mapping[str, str], zoo: Zoo) -> Cell:
    """The cell that trains a network as a teacher, with seed 0, which serves all seeds.

    ``data`` is the fingerprint of the task's data.

    Raises:
        UserError: the protocol starts it from ImageNet weights, and these are not installed.
    """
    cell = student_cell(network, protocol, data, plugins)
    if not protocol.start:
        return cell
    source = networks.imagenet_start.source(network)
    entry = zoo.installed(source, "imagenet")
    if entry is None:
        raise UserError(
            f"under {protocol.name} the teacher {network} begins with ImageNet weights of {source}, and none are "
            f"installed; see: {PROGRAM} teachers fetch {source}"
        )
    return replace(cell, start=zoo.ref(entry))
