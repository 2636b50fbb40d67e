"""What detection brings to the registries of the suite."""

from __future__ import annotations

from typing import Any

from .networks import detectors
from .tasks import coco, shapes

SOURCES = detectors.SOURCES
TASKS = (shapes.TASK, coco.TASK)


def __getattr__(name: str) -> Any:
    """The engine needs the driver, which is not there yet where networks ask for what detection brings."""
    if name == "ENGINES":
        from .engine import ENGINES

        return ENGINES
    raise AttributeError(name)
