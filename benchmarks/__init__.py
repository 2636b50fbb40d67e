"""How methods are compared: see docs/architecture.md for the rooms.

From Python, without the command line: ``merge`` two stores, ``export`` runs as an archive, ``import_`` and ``verify``
one, ``explain`` a number; ``load`` a store, and ``verdicts`` on published values, as a DataFrame.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .driver.verify import verify
    from .report.explain import explain
    from .report.records import load
    from .report.verdicts import frame as verdicts
    from .store.exchange import export, import_, merge

__all__ = ["explain", "export", "import_", "load", "merge", "verdicts", "verify"]

EXTENSIONS = dict.fromkeys(("SOURCES", "TASKS", "ENGINES"), (f"{__name__}.detection.extension",))
"""Modules of upper rooms that bring things of their own to registries; see :mod:`benchmarks.common.registry`."""

_PLACES = {
    "explain": ("report.explain", "explain"),
    "export": ("store.exchange", "export"),
    "import_": ("store.exchange", "import_"),
    "load": ("report.records", "load"),
    "merge": ("store.exchange", "merge"),
    "verdicts": ("report.verdicts", "frame"),
    "verify": ("driver.verify", "verify"),
}
"""Where the names above are; they are imported when they are asked for, and with some of them torch or pandas."""


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(f".{module}", __name__), attribute)
