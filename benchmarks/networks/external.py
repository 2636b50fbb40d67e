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

from kd_methods.errors import UserError, first_line, unknown
from kd_methods.views import Chain, NetworkView
from kd_methods.views.traced import TracedChain, images_that_run, trace

from .source import NetworkSource

SIZES = (8, 2048)
"""Least and largest height and width that images are resized to."""

_NAME = re.compile(r"(?P<library>[^:]+):(?P<model>[^@]+)(@(?P<size>[1-9]\d*))?")


class Library(NetworkSource):
    """Classifiers of a library of the source's name, with random weights."""

    modality = "images"

    @functools.cached_property
    def models(self) -> frozenset[str]:
        """The library's names."""
        raise NotImplementedError

    def module(
        self, model: str, num_classes: int, input_size: tuple[int, ...], drop_path: float | None = None
    ) -> nn.Module:
        """A network of the library's; ``drop_path`` where it has stochastic depth.

        Raises:
            UserError: it cannot be built for the size.
        """
        raise NotImplementedError

    def version(self, name: str) -> int:
        """Of how its forward pass is read: 2 since stages are cut before ReLUs of their own and of batch-norms."""
        return 2

    def has(self, name: str) -> bool:
        parsed = _NAME.fullmatch(name)
        return parsed is not None and parsed["library"] == self.name

    def check(self, name: str) -> None:
        model, size = _parsed(name)
        least, largest = SIZES
        if size and (len(size) > len(str(largest)) or not least <= int(size) <= largest):
            raise UserError(f"network '{name[:80]}' resizes images to {size[:20]}; sizes are {least} to {largest}")
        if model not in self.models:
            raise unknown(f"network of {self.name}", model, self.models)

    def build(self, name: str, num_classes: int, input_shape: tuple[int, ...], vocabulary: int) -> NetworkView:
        return self._view(name, num_classes, input_shape)

    def _view(
        self, name: str, num_classes: int, input_shape: tuple[int, ...], drop_path: float | None = None
    ) -> NetworkView:
        """A network without weights.

        Raises:
            UserError: it cannot be built for the size, or not be cut into units.
        """
        model, resized = _parsed(name)
        height, width = (int(resized),) * 2 if resized else input_shape[1:]
        size = input_shape[0], height, width
        module = self.module(model, num_classes, size, drop_path)
        if (name, num_classes, size, drop_path) not in _traced:
            images = images_that_run(module, size, name, f"{name.partition('@')[0]}@SIZE resizes them")
            _traced[name, num_classes, size, drop_path] = trace(module, images, name)
        chain = _traced[name, num_classes, size, drop_path].of
        if size[1:] != tuple(input_shape[1:]):
            chain = partial(_resizing, chain, (height, width))
        return NetworkView(module, chain, input_shape)


def _parsed(name: str) -> tuple[str, str]:
    """The library's name of a network, and the size that images are resized to, if any."""
    parsed = _NAME.fullmatch(name)
    assert parsed
    return parsed["model"], parsed["size"] or ""


_traced: dict[tuple[str, int, tuple[int, ...], float | None], TracedChain] = {}
"""By name, number of classes, size of the images and stochastic depth: tracing takes a good part of a second."""


def _resizing(chain_of: Callable[[nn.Module], Chain], size: tuple[int, int], module: nn.Module) -> Chain:
    """A chain that resizes its images first, which the module itself does not."""
    chain = chain_of(module)
    return replace(chain, units=(("resize", partial(_resized, size)), *chain.units), alone=False)


def _resized(size: tuple[int, int], x: Tensor) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", antialias=True)


class Torchvision(Library):
    name, publishes = "torchvision", True

    @functools.cached_property
    def models(self) -> frozenset[str]:
        import torchvision.models

        return frozenset(torchvision.models.list_models(torchvision.models))

    def module(
        self, model: str, num_classes: int, input_size: tuple[int, ...], drop_path: float | None = None
    ) -> nn.Module:
        import torchvision.models

        return torchvision.models.get_model(model, weights=None, num_classes=num_classes)

    def published(self, weights: str) -> dict[str, Any]:
        import torchvision.models

        network, _, version = weights.partition(".")
        if network not in self.models:  # those for detection, segmentation or videos are no teachers here
            raise unknown("network of torchvision", network, self.models)
        known = {kind.name: kind for kind in torchvision.models.get_model_weights(network)}
        version = version or "IMAGENET1K_V1"
        if version not in known:
            raise unknown(f"weights of torchvision:{network}", version, known)
        chosen = known[version]
        transforms = chosen.transforms()
        origin = (
            self.name if version == "IMAGENET1K_V1" else f"{self.name}-{version.removeprefix('IMAGENET1K_').lower()}"
        )
        expected: dict[str, Any] = {}
        # Those by which teachers are verified.
        images = transforms.resize_size, transforms.crop_size, transforms.interpolation.value
        if images == ([256], [224], "bilinear"):
            expected["expected"] = chosen.meta["_metrics"]["ImageNet-1K"]["acc@1"]
            expected["expected_source"] = "torchvision's metadata of the weights"
        return {
            "name": f"{network}.{version}",
            "origin": origin,
            "mean": tuple(transforms.mean),
            "std": tuple(transforms.std),
            **expected,
            "sources": (chosen.url,),
            "sha256": chosen.url.rpartition("-")[2].partition(".")[0],
        }


class _NoStochasticDepth(Exception):
    """timm builds this network without."""


class Timm(Library):
    name, publishes = "timm", True

    @functools.cached_property
    def models(self) -> frozenset[str]:
        import timm

        return frozenset(name for name in timm.list_models() if not name.startswith("kd_"))

    def check(self, name: str) -> None:
        network, _, tag = _parsed(name)[0].partition(".")
        if tag and network in self.models:
            raise UserError(f"'{name}' names weights; the network is timm:{network}, see: teachers fetch")
        super().check(name)

    def module(
        self, model: str, num_classes: int, input_size: tuple[int, ...], drop_path: float | None = None
    ) -> nn.Module:
        """See :meth:`Library.module`; those with a fixed size of images are built for this one.

        Raises:
            UserError: it cannot be built for the size.
            _NoStochasticDepth: it takes no ``drop_path``.
        """
        import timm

        config = timm.get_pretrained_cfg(model)
        usual = tuple(config.input_size) if config else ()
        arguments: dict[str, Any] = {"num_classes": num_classes}
        if config and config.fixed_input_size and usual != input_size:
            arguments["img_size"] = input_size[1:]
        if drop_path is not None:
            arguments["drop_path_rate"] = drop_path
        try:
            return timm.create_model(model, **arguments)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            if "drop_path_rate" in str(error):
                raise _NoStochasticDepth from None
            size = "x".join(map(str, input_size[1:]))
            raise UserError(
                f"timm:{model} cannot be built for images of {size} ({first_line(error)}); "
                f"timm:{model}@{usual[-1] if usual else 224} resizes them"
            ) from None

    def with_drop_path(
        self, name: str, num_classes: int, input_shape: tuple[int, ...], vocabulary: int, rate: float
    ) -> NetworkView:
        from timm.layers import DropPath

        with suppress(_NoStochasticDepth):
            view = self._view(name, num_classes, input_shape, rate)
            if not rate or any(isinstance(module, DropPath) for module in view.modules()):
                return view
        return super().with_drop_path(name, num_classes, input_shape, vocabulary, rate)

    def published(self, weights: str) -> dict[str, Any]:
        import timm

        network, _, tag = weights.partition(".")
        known = timm.list_pretrained(f"{network}.*")
        name = weights if tag else next(iter(known), network)
        config = timm.get_pretrained_cfg(name) if name in known else None
        if config is None:
            raise unknown("weights of timm", name, known or timm.list_pretrained())
        if config.num_classes != 1000:
            raise UserError(
                f"the weights timm:{name} know {config.num_classes} classes, ImageNet has 1000; take others"
            )
        return {"name": name, "mean": config.mean, "std": config.std, "sources": (f"timm:{name}",)}

    def downloaded(self, weights: str) -> dict[str, Tensor]:
        import timm

        try:
            return dict(timm.create_model(weights, pretrained=True).state_dict())
        except Exception as error:  # of whatever library carries the file
            reason, *_ = str(error).splitlines() or [""]
            raise OSError(f"{type(error).__name__}: {reason}") from None


SOURCES = (Timm(), Torchvision())


def is_external(name: str) -> bool:
    """Whether a network is another library's."""
    return any(source.has(name) for source in SOURCES)
