"""What detection brings to the registries of the suite."""

from __future__ import annotations

from typing import Any

from . import coco, detectors, shapes

SOURCES = detectors.SOURCES
TASKS = (shapes.TASK, coco.TASK)


def __getattr__(name: str) -> Any:
    """The executor needs the driver, which is not there yet where networks ask for what detection brings."""
    if name == "EXECUTORS":
        from .executor import EXECUTORS

        return EXECUTORS
    raise AttributeError(name)
