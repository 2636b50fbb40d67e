"""Every network as a chain of units, by name; ours are timm models too, under the prefix ``kd_``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from operator import methodcaller
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kd_methods.errors import UserError, unknown

from . import libraries, mobilenetv2, resnet, shufflenet, vgg, wrn
from .network import Architecture, Chain, NetworkView, fold_batch_norms

__all__ = [
    "Architecture",
    "Chain",
    "NetworkView",
    "build_network",
    "count",
    "fold_batch_norms",
    "macs",
    "names",
    "register_network",
]

Builder = Callable[[int], Architecture]
_builders: dict[str, Builder] = {}
_versions: dict[str, int] = {}


def register_network(name: str, builder: Builder, version: int = 1) -> None:
    """Make an architecture available by name, here and as timm's ``kd_<name>``.

    Args:
        name: how pairs and the command line call it.
        builder: maps a number of classes to an :class:`Architecture` (for plugins: any module with ``chain()``).
        version: raised when the architecture or its initialisation is mended; part of the cells that use it.

    Raises:
        UserError: another network already has that name.
    """
    if name in _builders:
        raise UserError(f"a network called '{name}' is registered already; give yours another name")
    _builders[name], _versions[name] = builder, version

    def entry(pretrained: bool = False, num_classes: int = 100, **_: Any) -> nn.Module:
        if pretrained:
            raise UserError(f"kd_{name} has no weights of its own in timm; see ./reproduce.sh teachers list")
        return builder(num_classes)

    entry.__name__ = entry.__qualname__ = f"kd_{name}".replace(".", "_")
    entry.__module__ = __name__
    setattr(sys.modules[__name__], entry.__name__, entry)
    timm.models.register_model(entry)


def names() -> list[str]:
    """All registered network names."""
    return list(_builders)


def version(name: str) -> int:
    """The version of a registered network."""
    return _versions[name]


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Number of values in parameters; one that is shared counts once."""
    return sum({id(parameter): parameter.numel() for parameter in parameters}.values())


def macs(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of a forward pass over one input (1, C, H, W), in convolutions and matrix products."""
    training = module.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(x)
    module.train(training)
    return counter.get_total_flops() // 2


def build_network(name: str, num_classes: int = 100, input_shape: tuple[int, ...] = (3, 32, 32)) -> NetworkView:
    """The Network view of a freshly initialised architecture.

    Args:
        name: a name of :func:`names`.
        num_classes: size of the classifier.
        input_shape: (C, H, W) of one input; feature shapes derive from it.

    Raises:
        UserError: no such network; the message names the nearest ones.
    """
    if name not in _builders:
        raise unknown("network", name, _builders)
    return NetworkView(_builders[name](num_classes), methodcaller("chain"), input_shape)


for _family in (resnet, wrn, vgg, mobilenetv2, shufflenet, libraries):
    for _name, _builder in _family.FAMILY.items():
        register_network(_name, _builder)
