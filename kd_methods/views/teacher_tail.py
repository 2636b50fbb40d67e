"""A student that ends in its teacher: trunk, a module that is trained, and the teacher's frozen tail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from .chain import Architecture, Chain

if TYPE_CHECKING:
    from .network import NetworkView

TEACHER_TAIL = "tail."
"""Before the names of units that a network has from its teacher; see :meth:`NetworkView.with_teacher_tail`."""


class WithTeacherTail(Architecture):
    """The units of ``trunk`` up to ``unit``, a module, and the teacher's frozen units after ``entry``.

    The module is called ``part`` in the keys of checkpoints.
    """

    def __init__(
        self, trunk: NetworkView, unit: str, name: str, module: nn.Module, tail: NetworkView, entry: str
    ) -> None:
        super().__init__()
        self.trunk, self.part, self.tail = trunk.module, module, tail.module.requires_grad_(False).eval()
        self._chains = trunk._chain_of, tail._chain_of
        self._names = unit, name, entry

    def train(self, mode: bool = True) -> WithTeacherTail:
        super().train(mode)
        self.tail.eval()
        return self

    def chain(self) -> Chain:
        unit, name, entry = self._names
        trunk, tail = self._chains[0](self.trunk), self._chains[1](self.tail)
        length, entered = trunk.position(unit) + 1, tail.position(entry) + 1
        units: list[tuple[str, Callable[[Any], Any]]] = [*trunk.units[:length], (name, self.part)]
        units += [(f"{TEACHER_TAIL}{tail_unit}", run) for tail_unit, run in tail.units[entered:]]
        names = {unit for unit, _ in units}
        stages, preacts, blocks, layers = (
            tuple(unit for unit in field if unit in names)
            for field in (trunk.layout.stages, trunk.layout.preacts, trunk.layout.blocks, trunk.layout.layers)
        )
        pooled = f"{TEACHER_TAIL}{tail.layout.pooled}"
        layout = replace(
            trunk.layout,
            stages=stages,
            preacts=preacts,
            blocks=blocks,
            last_map=name,
            pooled=pooled,
            rectified=trunk.layout.rectified & names,
            layers=(*layers, pooled),
        )
        return Chain(tuple(units), layout, trunk.taps)
