"""Networks of timm and torchvision by name.

``timm:NAME`` and ``torchvision:NAME`` are built for the task's image size; with ``@SIZE`` behind the name the network
resizes its inputs to SIZE x SIZE first.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kd_methods.errors import UserError, unknown
from kd_methods.views import Chain, NetworkView
from kd_methods.views.traced import TracedChain, images_that_run, trace

from .source import NetworkSource

SIZES = (8, 2048)
"""Least and largest height and width that images are resized to."""

_NAME = re.compile(r"(?P<library>timm|torchvision):(?P<name>[^@]+)(@(?P<size>[1-9]\d*))?")


def is_external(name: str) -> bool:
    """Whether a network is one of timm or torchvision."""
    return _NAME.fullmatch(name) is not None


def check(name: str) -> None:
    """Raise UserError where the library has no network of that name, or the size is none of images."""
    parsed = _NAME.fullmatch(name)
    assert parsed
    least, largest = SIZES
    size = parsed["size"]
    if size and (len(size) > len(str(largest)) or not least <= int(size) <= largest):
        raise UserError(f"network '{name[:80]}' resizes images to {size[:20]}; sizes are {least} to {largest}")
    library, model = parsed["library"], parsed["name"]
    if library == "timm" and "." in model and model.partition(".")[0] in _known(library):
        raise UserError(f"'{name}' names weights; the network is timm:{model.partition('.')[0]}, see: teachers fetch")
    if model not in _known(library):
        raise unknown(f"network of {library}", model, _known(library))


@functools.cache
def _known(library: str) -> frozenset[str]:
    if library == "timm":
        import timm

        return frozenset(name for name in timm.list_models() if not name.startswith("kd_"))
    import torchvision.models

    return frozenset(torchvision.models.list_models(torchvision.models))


_traced: dict[tuple[str, int, tuple[int, ...], float | None], TracedChain] = {}
"""By name, number of classes, size of the images and stochastic depth: tracing takes a good part of a second."""


def build(
    name: str, num_classes: int, input_shape: tuple[int, ...], drop_path: float | None = None
) -> tuple[nn.Module, Callable[[nn.Module], Chain]]:
    """A network without weights, and what makes its chain; ``drop_path`` is for those of timm.

    Raises:
        UserError: it cannot be built for the size, or not be cut into units.
    """
    parsed = _NAME.fullmatch(name)
    assert parsed
    height, width = (int(parsed["size"]),) * 2 if parsed["size"] else input_shape[1:]
    if parsed["library"] == "torchvision":
        import torchvision.models

        module = torchvision.models.get_model(parsed["name"], weights=None, num_classes=num_classes)
    else:
        module = _timm(parsed["name"], num_classes, (input_shape[0], height, width), drop_path)
    size = input_shape[0], height, width
    if (name, num_classes, size, drop_path) not in _traced:
        images = images_that_run(module, size, name, f"{name.partition('@')[0]}@SIZE resizes them")
        _traced[name, num_classes, size, drop_path] = trace(module, images, name)
    chain = _traced[name, num_classes, size, drop_path].of
    return module, chain if size[1:] == tuple(input_shape[1:]) else partial(_resizing, chain, (height, width))


class _NoStochasticDepth(Exception):
    """timm builds this network without."""


def _timm(name: str, num_classes: int, input_size: tuple[int, int, int], drop_path: float | None) -> nn.Module:
    """timm's network; those with a fixed size of images are built for this one.

    Raises:
        UserError: it cannot be built for the size.
        _NoStochasticDepth: it takes no ``drop_path``.
    """
    import timm

    config = timm.get_pretrained_cfg(name)
    usual = tuple(config.input_size) if config else ()
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if config and config.fixed_input_size and usual != input_size:
        arguments["img_size"] = input_size[1:]
    if drop_path is not None:
        arguments["drop_path_rate"] = drop_path
    try:
        return timm.create_model(name, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        if "drop_path_rate" in str(error):
            raise _NoStochasticDepth from None
        size = "x".join(map(str, input_size[1:]))
        raise UserError(
            f"timm:{name} cannot be built for images of {size} ({str(error).splitlines()[0]}); "
            f"timm:{name}@{usual[-1] if usual else 224} resizes them"
        ) from None


def _resizing(chain_of: Callable[[nn.Module], Chain], size: tuple[int, int], module: nn.Module) -> Chain:
    """A chain that resizes its images first, which the module itself does not."""
    chain = chain_of(module)
    return replace(chain, units=(("resize", partial(_resized, size)), *chain.units), alone=False)


def _resized(size: tuple[int, int], x: Tensor) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", antialias=True)


class External(NetworkSource):
    """Classifiers of timm and torchvision, with random weights."""

    name, modality = "external", "images"

    def has(self, name: str) -> bool:
        return is_external(name)

    def check(self, name: str) -> None:
        check(name)

    def build(self, name: str, num_classes: int, input_shape: tuple[int, ...], vocabulary: int) -> NetworkView:
        return NetworkView(*build(name, num_classes, input_shape), input_shape)

    def with_drop_path(
        self, name: str, num_classes: int, input_shape: tuple[int, ...], vocabulary: int, rate: float
    ) -> NetworkView:
        if name.startswith("timm:"):
            from timm.layers import DropPath

            with suppress(_NoStochasticDepth):
                view = NetworkView(*build(name, num_classes, input_shape, rate), input_shape)
                if not rate or any(isinstance(module, DropPath) for module in view.modules()):
                    return view
        return super().with_drop_path(name, num_classes, input_shape, vocabulary, rate)


SOURCES = (External(),)
