"""A network as methods see it, whatever its family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .features import FIELDS, Layout, Outputs


class Network(nn.Module):
    """An ordered chain of named units over a plain architecture, seen the same way for every family.

    The interface that methods rely on; ``kd_methods.views.NetworkView`` is the implementation.
    """

    module: nn.Module
    layout: Layout

    def forward(self, x: Tensor, at: Iterable[str] = (), fields: Iterable[str] = FIELDS) -> Outputs:
        """One forward pass; keeps the units named in ``at`` and those of ``fields``."""
        raise NotImplementedError

    def resume(self, unit: str, feature: Any, until: str | None = None) -> Any:
        """Run what follows ``unit`` on ``feature``: up to the logits, or up to and including the unit ``until``.

        Behind a unit of tokens the feature may be a map of their patches, too.
        """
        raise NotImplementedError

    def insert(self, unit: str, name: str, module: nn.Module) -> Network:
        """The network with ``module`` added after ``unit`` as a unit of its own called ``name``."""
        raise NotImplementedError

    def with_teacher_tail(self, unit: str, name: str, module: nn.Module, teacher: Network, entry: str) -> Network:
        """This network up to ``unit``, ``module`` as a unit called ``name``, and the teacher's units after ``entry``.

        One network, trained and deployed without what does not run in it. It has copies of both networks; the teacher's
        tail stays frozen and in evaluation mode.
        """
        raise NotImplementedError

    def fold_batch_norms(self) -> Network:
        """A frozen copy with batch-norms folded into convolutions where they can be; same outputs up to rounding."""
        raise NotImplementedError

    @contextmanager
    def batch_statistics(self) -> Iterator[None]:
        """Inside, batch-norms normalise by the batch at hand and leave their running statistics as they are.

        For passes that are not the network's own: those of a teacher whose batch statistics a method wants, and those
        of a part of either network on features that come from elsewhere. Whatever else depends on the mode, training
        or evaluation, stays as it is.
        """
        norms = [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        before = [(norm.training, norm.track_running_stats) for norm in norms]
        try:
            for norm in norms:
                norm.training, norm.track_running_stats = True, False
            yield
        finally:
            for norm, (training, tracking) in zip(norms, before, strict=True):
                norm.training, norm.track_running_stats = training, tracking

    def plain(self) -> nn.Module:
        """A module that maps inputs to logits: ``module``, or with inserted modules a wrapper that runs them too."""
        raise NotImplementedError

    def shape(self, unit: str) -> tuple[int, ...]:
        """Shape of a unit's output without the batch dimension."""
        raise NotImplementedError

    def shapes(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Shapes of a field of :class:`Layout` as :class:`Outputs` have it, known without data."""
        raise NotImplementedError
