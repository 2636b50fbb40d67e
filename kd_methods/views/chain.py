"""What a network consists of, as a chain of named units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..contract import Layout


@dataclass(frozen=True)
class Chain:
    """The units of a network in the order in which they run, and which of them carry which features.

    ``taps`` are modules within units whose outputs can be kept as well; nothing can be resumed from them. ``alone``:
    the architecture itself computes what the chain does; else the chain does more, and has to be run.
    """

    units: tuple[tuple[str, Callable[[Any], Any]], ...]
    layout: Layout
    taps: Mapping[str, nn.Module] = field(default_factory=dict)
    alone: bool = True

    def position(self, unit: str) -> int:
        """Where a unit stands, from 0."""
        return [name for name, _ in self.units].index(unit)


class Architecture(nn.Module):
    """Base of the suite's own architectures: the forward pass is the chain, so the view cannot differ from it."""

    def chain(self) -> Chain:
        """The chain of this instance. Rebuilt on every call, so that copies refer to their own layers."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, K) logits."""
        for _, run in self.chain().units:
            x = run(x)
        return x


def in_turn(*modules: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A unit of several modules; not a module itself, which tracing would not find in the network."""
    return partial(_in_turn, modules)


def _in_turn(modules: tuple[Callable[[Tensor], Tensor], ...], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x
