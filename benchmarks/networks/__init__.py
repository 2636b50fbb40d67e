"""Every network as a chain of units, by name; ours are timm models too, under the prefix ``kd_``.

``timm:NAME`` and ``torchvision:NAME`` are any image classifier of these libraries, built for the task's images, or with
``@SIZE`` behind the name one that resizes them: see :mod:`benchmarks.networks.external`.
``hf:SOURCE`` is any encoder of transformers with a classification head, from a folder or the hub, with the source's
weights; ``hf:SOURCE[first6]`` has its first six layers, ``[last6]`` the last, ``[spread6]`` six at equal shares.
Detectors are mmdetection's: see :mod:`benchmarks.detection.detectors`.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable
from operator import methodcaller
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kd_methods.contract import Inputs, Network
from kd_methods.errors import UserError, unknown
from kd_methods.views import Architecture, Chain, LogitsOnly, NetworkView, fold_batch_norms
from kd_methods.views import text as text_view
from kd_methods.views.modes import modes_kept

from ..common.files import digest, sha256_file
from ..common.registry import Registry
from ..detection import detectors
from . import external, imagenet_start, text
from .entry import NetworkEntry

__all__ = [
    "Architecture",
    "Chain",
    "LogitsOnly",
    "NetworkView",
    "build_network",
    "check",
    "check_inputs",
    "count",
    "fold_batch_norms",
    "imagenet_start",
    "inherit",
    "inputs_of",
    "macs",
    "names",
    "pretrained_source",
    "register_network",
    "source_digest",
]

VOCABULARY = 30522
"""Words of bert-base-uncased."""

ENCODERS = {
    "bert_base": (12, 768, 12, 0.1),
    "bert_base_l6": (6, 768, 12, 0.1),
    "bert_base_l3": (3, 768, 12, 0.1),
    "bert_l4_h128": (4, 128, 2, 0.1),
    "bert_l2_h128": (2, 128, 2, 0.1),
    "bert_l4_h64": (4, 64, 2, 0.0),
    "bert_l2_h64": (2, 64, 2, 0.0),
    "bert_l2_h32": (2, 32, 2, 0.0),
}
"""BERTs that start from random weights: layers, width, heads, dropout (with it, the smallest do not learn)."""

_PRETRAINED = re.compile(r"hf:(?P<source>.+?)(\[(?P<which>first|last|spread)(?P<count>[1-9]\d{0,3})\])?")

NETWORKS: Registry[NetworkEntry] = Registry("network", __name__, "NETWORKS")


def register_network(name: str, builder: Callable[[int], nn.Module], version: int = 1) -> None:
    """Make an architecture available by name, here and as timm's ``kd_<name>``.

    Args:
        name: how pairs and the command line call it.
        builder: maps a number of classes to an :class:`Architecture` (for plugins: any module with ``chain()``).
        version: raised when the architecture or its initialisation is mended; part of the cells that use it.

    Raises:
        UserError: another network already has that name.
    """
    if name in names():
        raise UserError(f"a network called '{name}' is registered already; give yours another name")
    entry = NetworkEntry(name, builder, version)
    NETWORKS.register(entry)
    _enter_timm(entry)


def _enter_timm(entry: NetworkEntry) -> None:
    """timm registers functions, by their names and the modules that they are in."""

    def model(pretrained: bool = False, num_classes: int = 100, **_: Any) -> nn.Module:
        if pretrained:
            raise UserError(f"kd_{entry.name} has no weights of its own in timm; see ./reproduce.sh teachers list")
        return entry.build(num_classes)

    model.__name__ = model.__qualname__ = f"kd_{entry.name}".replace(".", "_")
    model.__module__ = __name__
    setattr(sys.modules[__name__], model.__name__, model)
    timm.models.register_model(model)


def names() -> list[str]:
    """All network names but those of other libraries and ``hf:``."""
    return [*NETWORKS.mapping(), *ENCODERS, *detectors.RECIPES]


def check(name: str, what: str = "network") -> None:
    """Raise UserError where there is no network of that name."""
    if detectors.is_detector(name):
        detectors.check(name)
    elif external.is_external(name):
        external.check(name)
    elif name not in NETWORKS.mapping() and name not in ENCODERS and not pretrained_source(name):
        raise unknown(what, name, names())


def version(name: str) -> int:
    """The version of a network."""
    entry = NETWORKS.mapping().get(name)
    return entry.version if entry else 1


def inputs_of(name: str) -> Inputs:
    """What a network reads."""
    if detectors.is_detector(name):
        return "detection"
    return "images" if name in NETWORKS.mapping() or external.is_external(name) else "text"


def check_inputs(name: str, task: str, given: str) -> None:
    """Raise UserError where a task gives a network something else than it reads."""
    if inputs_of(name) != given:
        raise UserError(f"network '{name}' reads {inputs_of(name)}, task {task} has {given}")


def pretrained_source(name: str) -> str:
    """The folder or the hub's name in ``hf:SOURCE`` or ``hf:SOURCE[first6]``; empty for other networks."""
    found = _PRETRAINED.fullmatch(name)
    return found["source"] if found else ""


@functools.cache
def source_digest(name: str) -> str:
    """What the weights are that an ``hf:`` network starts from; part of the cells that use it."""
    return digest([sha256_file(path) for path in text.files(pretrained_source(name))])


def inherit(student: Network, teacher: Network, which: str) -> None:
    """Start a student from its teacher's weights.

    A text encoder from a choice of its layers, ``first``, ``last`` or ``spread``, a detector from its neck and
    ``heads``.

    Raises:
        UserError: networks that cannot start so, or of different families or widths.
    """
    inputs = {student.layout.inputs, teacher.layout.inputs}
    if inputs == {"detection"} and which == "heads":
        detectors.inherit(student, teacher)  # type: ignore[arg-type]
        return
    if inputs != {"text"} or which == "heads":
        raise UserError(f"init '{which}': text encoders start from first, last or spread layers, detectors from heads")
    text.inherit(student.module, teacher.module, which)  # type: ignore[arg-type]


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Number of values in parameters; one that is shared counts once."""
    return sum({id(parameter): parameter.numel() for parameter in parameters}.values())


def macs(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of a forward pass over one input (1, C, H, W), in convolutions and matrix products."""
    with modes_kept(module), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(x)
    return counter.get_total_flops() // 2


def build_network(
    name: str,
    num_classes: int = 100,
    input_shape: tuple[int, ...] = (3, 32, 32),
    vocabulary: int = VOCABULARY,
) -> Any:
    """The Network view of a freshly initialised architecture, or of a checkpoint with a new classifier.

    A :class:`NetworkView`; of a detector, without weights of ImageNet, a ``Detector``.

    Args:
        name: a name of :func:`names`, ``timm:NAME``, ``torchvision:NAME`` or ``hf:SOURCE``.
        num_classes: size of the classifier.
        input_shape: (C, H, W) of one image; feature shapes derive from it.
        vocabulary: words that a text encoder without weights of its own can read.

    Raises:
        UserError: no such network (the message names the nearest ones), or one that cannot be had for these inputs.
    """
    check(name)
    if inputs_of(name) == "detection":
        return detectors.build(name, num_classes, pretrained=False)
    if inputs_of(name) == "text":
        found = _PRETRAINED.fullmatch(name)
        if found:
            layers = (found["which"], int(found["count"])) if found["count"] else None
            model = text.pretrained(found["source"], layers, num_classes)
        else:
            model = text.bert(*ENCODERS[name], vocabulary, num_classes)
        return NetworkView(model, text_view.chain, (3, text_view.LENGTH))
    if external.is_external(name):
        return NetworkView(*external.build(name, num_classes, input_shape), input_shape)
    return NetworkView(NETWORKS.get(name).build(num_classes), methodcaller("chain"), input_shape)


for _entry in NETWORKS.mapping().values():
    _enter_timm(_entry)
