"""Moving averages of weights: what a protocol with ``ema`` evaluates and saves in place of the weights as trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Averages:
    """Averages of the floating-point tensors of some modules, from their present values on.

    Args:
        modules: those whose parameters and buffers are averaged; what they share is averaged once.
        decay: the share of itself that an average keeps in an update; 0: there is nothing to average.
        constant: modules whose tensors are not trained, and not touched.
    """

    def __init__(self, modules: Iterable[nn.Module], decay: float, constant: Iterable[nn.Module] = ()) -> None:
        self.decay = decay
        untouched = {id(tensor) for module in constant for tensor in _tensors(module)}
        tensors = {id(tensor): tensor for module in modules for tensor in _tensors(module)} if decay else {}
        self._weights = [t.detach() for i, t in tensors.items() if i not in untouched and t.is_floating_point()]
        self.values: list[Tensor] = []
        self.start()

    def start(self) -> None:
        """Begin anew with the weights as they are."""
        self.values = [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """average <- decay * average + (1 - decay) * weight, after a step of the optimiser."""
        if self._weights:
            torch._foreach_lerp_(self.values, self._weights, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the modules have the averages for their weights; outside they are as they were, to the bit."""
        trained = [weight.clone() for weight in self._weights]
        _copy(self._weights, self.values)
        try:
            yield
        finally:
            _copy(self._weights, trained)

    def load(self, values: Sequence[Tensor]) -> None:
        """Go on from :attr:`values` that were saved.

        Raises:
            ValueError: they are those of other tensors.
        """
        if [value.shape for value in values] != [value.shape for value in self.values]:
            raise ValueError("its averages are those of other weights")
        _copy(self.values, values)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


@torch.no_grad()
def _copy(to: list[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(to, values, strict=True):
        tensor.copy_(value)
