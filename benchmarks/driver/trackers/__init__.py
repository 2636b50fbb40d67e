"""Trackers of experiments, which follow cells while they train. Each file here with ``TRACKERS`` brings some."""

from __future__ import annotations

from ...common.registry import Registry
from .tracker import Tracker, scalars, settings

__all__ = ["TRACKERS", "Tracker", "register_tracker", "scalars", "settings"]

TRACKERS: Registry[type[Tracker]] = Registry("tracker", __name__, "TRACKERS")


def register_tracker(tracker: type[Tracker]) -> None:
    """Make a tracker available by its name, to ``--track``.

    Raises:
        UserError: another one already has that name.
    """
    TRACKERS.register(tracker)
