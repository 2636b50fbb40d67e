"""The architectures of the field's tables, by name. Each file of ``cifar/`` with ``NETWORKS`` brings some."""

from __future__ import annotations

from collections.abc import Callable
from operator import methodcaller

from torch import nn

from kd_methods.views import NetworkView, view

from ..common.registry import Registry
from .entry import NetworkEntry
from .source import NetworkSource

ARCHITECTURES: Registry[NetworkEntry] = Registry("network", f"{__package__}.cifar", "NETWORKS")

NEWCOMERS: list[Callable[[NetworkEntry], None]] = []
"""Called with each architecture that is registered; timm's models are among the listeners once they are asked for."""


def register_network(name: str, builder: Callable[[int], nn.Module], version: int = 1, title: str = "") -> None:
    """Make an architecture available by name, here and as timm's ``kd_<name>``.

    Args:
        name: how pairs and the command line call it.
        builder: maps a number of classes to a classifier of images; of one with ``chain()`` these are its units (see
            :class:`ImageClassifier`), of any other they are found by tracing.
        version: raised when the architecture or its initialisation is mended; part of the cells that use it.
        title: as tables print it; by default what the rule for names makes of the name.

    Raises:
        UserError: another network already has that name.
    """
    entry = NetworkEntry(name, builder, version, title)
    ARCHITECTURES.register(entry)
    for enter in NEWCOMERS:
        enter(entry)


class ZooSource(NetworkSource):
    """Architectures with random weights, for images of the task's size."""

    name, modality = "zoo", "images"

    def names(self) -> list[str]:
        return list(ARCHITECTURES.mapping())

    def version(self, name: str) -> int:
        return ARCHITECTURES.get(name).version

    def title(self, name: str) -> str:
        return ARCHITECTURES.get(name).title or super().title(name)

    def build(self, name: str, num_classes: int, input_shape: tuple[int, ...], vocabulary: int) -> NetworkView:
        module = ARCHITECTURES.get(name).build(num_classes)
        if not hasattr(module, "chain"):
            return view(module, input_shape, name)
        return NetworkView(module, methodcaller("chain"), input_shape)


SOURCES = (ZooSource(),)
