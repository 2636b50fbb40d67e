"""An architecture by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class NetworkEntry:
    """How an architecture is built.

    name     how pairs and the command line call it
    build    maps a number of classes to a classifier of images, best with ``chain()``
    version  raised when the architecture or its initialisation is mended; part of the cells that use it
    title    as tables print it, where the rule for names (``network_title``) says something else
    side     height and width of the images that it is made for; it takes others, too
    """

    name: str
    build: Callable[[int], nn.Module]
    version: int = 1
    title: str = ""
    side: int = 32


def family(
    builders: Mapping[str, Callable[..., Any]],
    version: int = 1,
    titles: Mapping[str, str] | None = None,
    sides: Mapping[str, int] | None = None,
) -> tuple[NetworkEntry, ...]:
    """Entries of one version; ``titles`` and ``sides`` of those that have others than most."""
    titles, sides = titles or {}, sides or {}
    return tuple(
        NetworkEntry(name, build, version, titles.get(name, ""), sides.get(name, 32))
        for name, build in builders.items()
    )
