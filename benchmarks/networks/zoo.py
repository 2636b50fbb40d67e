"""The architectures of the field's tables, by name. Each file here with ``NETWORKS`` brings some."""

from __future__ import annotations

import sys
from collections.abc import Callable
from operator import methodcaller
from typing import Any

import timm
from torch import nn

from kd_methods.errors import UserError
from kd_methods.views import NetworkView, view

from ..common.places import PROGRAM
from ..common.registry import Registry
from .entry import NetworkEntry
from .source import NetworkSource

ARCHITECTURES: Registry[NetworkEntry] = Registry("network", __package__, "NETWORKS")


def register_network(name: str, builder: Callable[[int], nn.Module], version: int = 1, title: str = "") -> None:
    """Make an architecture available by name, here and as timm's ``kd_<name>``.

    Args:
        name: how pairs and the command line call it.
        builder: maps a number of classes to a classifier of images; of one with ``chain()`` these are its units (see
            :class:`Architecture`), of any other they are found by tracing.
        version: raised when the architecture or its initialisation is mended; part of the cells that use it.
        title: as tables print it; by default what the rule for names makes of the name.

    Raises:
        UserError: another network already has that name.
    """
    entry = NetworkEntry(name, builder, version, title)
    ARCHITECTURES.register(entry)
    enter_timm(entry)


def enter_timm(entry: NetworkEntry) -> None:
    """Make an architecture a model of timm's, which registers functions by their names and modules."""

    def model(pretrained: bool = False, num_classes: int = 100, **_: Any) -> nn.Module:
        if pretrained:
            raise UserError(f"kd_{entry.name} has no weights of its own in timm; see {PROGRAM} teachers list")
        return entry.build(num_classes)

    model.__name__ = model.__qualname__ = f"kd_{entry.name}".replace(".", "_")
    model.__module__ = __name__
    setattr(sys.modules[__name__], model.__name__, model)
    timm.models.register_model(model)


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
