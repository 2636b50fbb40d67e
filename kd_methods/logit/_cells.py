"""Logits of the cells of a network's last map, for scale-decoupled distillation (Wei et al. 2024)."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import Field
from torch import Tensor

from .. import functional
from ..contract import Method, MethodSettings, Needs, Network, Outputs
from ..errors import UserError
from ..feature._maps import only_pools

Scale = Literal[1, 2, 4]


class CellSettings(MethodSettings):
    scales: tuple[Scale, ...] = Field(
        (1, 2), min_length=1, description="sides of the grids of cells, the whole map first"
    )


C = TypeVar("C", bound=CellSettings)


class OnCells(Method[C]):
    """Base of the methods that compare the logits of cells.

    A network's classifier runs on every cell of its last map; without a plain mean between map and classifier the cells
    would have no logits of their own.
    """

    needs = Needs(student=("last_map",), teacher=("last_map",))

    def setup(self) -> None:
        if self.settings.scales[0] != 1:
            raise UserError(f"setting {self.card.name}.scales: the whole map, scale 1, comes first")
        if len(set(self.settings.scales)) < len(self.settings.scales):
            raise UserError(f"setting {self.card.name}.scales: each scale once, or its cells would count twice")
        for network in (self.student, self.teacher):
            if not only_pools(network):
                raise UserError(
                    f"method '{self.card.name}' needs networks that only pool between their last map and classifier"
                )

    def cells(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's logits (B, N, K)."""
        cells = _logits(self.student, student.last_map, self.settings.scales)
        return cells, _logits(self.teacher, teacher.last_map, self.settings.scales)


def _logits(network: Network, last_map: Tensor, scales: tuple[int, ...]) -> Tensor:
    cells = functional.scale_cells(last_map, scales=scales)
    return network.resume(network.layout.pooled, cells.flatten(0, 1)).unflatten(0, cells.shape[:2])
