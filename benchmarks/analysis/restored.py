"""Students of finished cells, from their files."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..store.cell import Cell
from ..tasks import TaskData
from ..training.assembly import Assembly


def restored(cell: Cell, data: TaskData, weights: Mapping[str, Tensor]) -> Assembly:
    """What a cell trained and what it deploys, with the weights of the latter's file.

    Raises:
        UserError: there is no such network or method, or they do not go together.
        RuntimeError: the weights are not the deployed network's.
    """
    teacher = data.build(cell.teacher.network).requires_grad_(False).eval() if cell.teacher else None
    assembly = Assembly(cell, data.build(cell.student), teacher, data.info, data.device)
    assembly.deployed.load_state_dict(dict(weights))
    return assembly
