"""Every network as a chain of units, by name: a list of sources, each with its kind of names.

Ours are timm models too, under the prefix ``kd_``, once :mod:`benchmarks.timm_models` is imported. ``timm:NAME`` and
``torchvision:NAME`` are any image classifier of these libraries (:mod:`.external`), ``hf:SOURCE`` any encoder of
transformers (:mod:`.encoders`). Each file here with ``SOURCES`` brings some; mmdetection's detectors come as an
extension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kd_methods.contract import Modality, Network
from kd_methods.errors import Changed, UserError, unknown
from kd_methods.views import Chain, LogitsOnly, NetworkView, fold_batch_norms
from kd_methods.views.modes import modes_kept

from ..common.registry import Registry
from . import imagenet_start
from .architectures import register_network
from .encoders import ENCODERS, VOCABULARY, pretrained_source
from .image_classifier import ImageClassifier
from .source import NetworkSource

__all__ = [
    "ENCODERS",
    "SOURCES",
    "VOCABULARY",
    "Chain",
    "ImageClassifier",
    "LogitsOnly",
    "NetworkSource",
    "NetworkView",
    "build_network",
    "check",
    "check_modality",
    "count",
    "fold_batch_norms",
    "imagenet_start",
    "init_from",
    "macs",
    "modality_of",
    "names",
    "positions",
    "pretrained_source",
    "published",
    "publisher",
    "register_network",
    "register_source",
    "source_of",
    "title",
    "version",
    "weights_digest",
]

SOURCES: Registry[NetworkSource] = Registry("network source", __name__, "SOURCES")


def register_source(source: NetworkSource) -> None:
    """Make networks of another kind of name available.

    Raises:
        UserError: another source already has that name.
    """
    SOURCES.register(source)


def _source(name: str, what: str = "network") -> NetworkSource:
    for source in SOURCES.mapping().values():
        if source.has(name):
            return source
    raise unknown(what, name, names())


def names() -> list[str]:
    """All network names that can be listed: not those of other libraries, nor ``hf:``."""
    return [name for source in SOURCES.mapping().values() for name in source.names()]


def check(name: str, what: str = "network") -> None:
    """Raise UserError where there is no network of that name."""
    _source(name, what).check(name)


def source_of(name: str) -> str:
    """What resolves a name, as registered."""
    return _source(name).name


def version(name: str) -> int:
    """The version of a network."""
    return _source(name).version(name)


def title(name: str) -> str:
    """A network's name as tables print it."""
    return _source(name).title(name)


def weights_digest(name: str) -> str:
    """What the weights are that a network starts from; empty where they are random. Part of the cells that use it."""
    return _source(name).weights_digest(name)


def published(library: str, weights: str) -> dict[str, Any]:
    """What a source says of weights ``NETWORK.TAG`` for ImageNet, as fields of a teacher's entry.

    Raises:
        UserError: the source publishes none, or none such.
    """
    publishing = _publishing()
    if library not in publishing:
        raise unknown("library of weights", library, publishing)
    network = f"{library}:{weights.partition('.')[0]}"
    return {"network": network, "task": "imagenet", "origin": library, **publishing[library].published(weights)}


def publisher(address: str) -> NetworkSource | None:
    """The source that downloads the weights at an address ``SOURCE:WEIGHTS`` itself; None where it is a file's."""
    return _publishing().get(address.partition(":")[0])


def _publishing() -> dict[str, NetworkSource]:
    return {name: source for name, source in SOURCES.mapping().items() if source.publishes}


def positions(name: str) -> int | None:
    """How many tokens of a text a network can read; None where it does not number them, or reads no texts."""
    return _source(name).positions(name)


def modality_of(name: str) -> Modality:
    """What a network reads."""
    return _source(name).modality


def check_modality(name: str, task: str, given: str) -> None:
    """Raise UserError where a task gives a network something else than it reads."""
    if modality_of(name) != given:
        raise UserError(f"network '{name}' reads {modality_of(name)}, task {task} has {given}")


def check_unchanged(name: str, planned: Mapping[str, str]) -> None:
    """A network starts from the weights with which its cell was ``planned``, those of :func:`weights_digest`.

    Raises:
        Changed: they are others by now.
    """
    digest = weights_digest(name)
    if digest and planned.get(f"network:{name}", digest) != digest:
        raise Changed(f"'{name}' has other weights than when the run was planned; the same command plans anew")


def init_from(name: str, student: Network, teacher: Network, which: str) -> None:
    """Start a student, whose name is given, from its teacher's weights.

    A text encoder from a choice of its layers, ``first``, ``last`` or ``spread``, a detector from its neck and
    ``heads``.

    Raises:
        UserError: networks that cannot start so, or of different families or widths.
    """
    modality = student.layout.modality
    if modality != teacher.layout.modality:
        raise UserError(f"init '{which}': the student reads {modality}, its teacher {teacher.layout.modality}")
    _source(name).init_from(student, teacher, which)


def count(parameters: Iterable[nn.Parameter]) -> int:
    """Number of values in parameters; one that is shared counts once."""
    return sum({id(parameter): parameter.numel() for parameter in parameters}.values())


def attention() -> dict[Any, Callable[..., int]]:
    """Formulas of the operations of a CPU's fused attention, which torch's own counters leave out."""
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    def forward(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query.shape, key.shape, value.shape))

    def backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))

    for formula in (forward, backward):
        vars(formula)["_get_raw"] = True  # it takes tensors, and not their shapes
    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


def macs(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of a forward pass over one input (1, C, H, W), in convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode  # with it comes triton

    counter = FlopCounterMode(display=False, custom_mapping=attention())
    with modes_kept(module), torch.no_grad(), counter:
        module.eval()(x)
    return counter.get_total_flops() // 2


def build_network(
    name: str,
    num_classes: int = 100,
    input_shape: tuple[int, ...] = (3, 32, 32),
    vocabulary: int = VOCABULARY,
    drop_path: float | None = None,
) -> Any:
    """The Network view of a freshly initialised architecture, or of a checkpoint with a new classifier.

    A :class:`NetworkView`; of a detector, without weights of ImageNet, a ``Detector``.

    Args:
        name: a name of :func:`names`, ``timm:NAME``, ``torchvision:NAME`` or ``hf:SOURCE``.
        num_classes: size of the classifier.
        input_shape: (C, H, W) of one image; feature shapes derive from it.
        vocabulary: words that a text encoder without weights of its own can read.
        drop_path: rate of stochastic depth of a network of images in training; None for the architecture's own.

    Raises:
        UserError: no such network (the message names the nearest ones), or one that cannot be had for these inputs.
    """
    source = _source(name)
    source.check(name)
    if drop_path is not None:
        return source.with_drop_path(name, num_classes, input_shape, vocabulary, drop_path)
    return source.build(name, num_classes, input_shape, vocabulary)
