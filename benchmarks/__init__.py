"""How methods are compared: see docs/architecture.md for the rooms.

From Python, without the command line (docs/python.md): ``plan_table``, ``run_table`` and ``run_cell``; ``load`` a
store as a DataFrame of cells, epochs, costs or verdicts; ``explain`` a number; ``convert`` a run for other libraries;
``merge`` two stores, ``export`` runs as an archive, ``import_`` and ``verify`` one. ``workspace`` is where some of
these work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .driver.calls import Event, plan_table, run_cell, run_table, workspace
    from .driver.convert import convert
    from .driver.verify import verify
    from .report.explain import explain
    from .report.records import load
    from .report.verdicts import frame as verdicts
    from .store.exchange import export, import_, merge

__all__ = [
    "Event", "convert", "explain", "export", "import_", "load", "merge", "plan_table", "run_cell", "run_table",
    "verdicts", "verify", "workspace",
]  # fmt: skip

EXTENSIONS = dict.fromkeys(("SOURCES", "TASKS", "ENGINES"), (f"{__name__}.detection.extension",))
"""Modules of upper rooms that bring things of their own to registries; see :mod:`benchmarks.common.registry`."""

_PLACES = {
    **{name: ("driver.calls", name) for name in ("Event", "plan_table", "run_cell", "run_table", "workspace")},
    "convert": ("driver.convert", "convert"),
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


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
