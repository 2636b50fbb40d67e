"""Learning-rate schedules by name. Each file here with ``SCHEDULES`` brings some. Imports no torch."""

from __future__ import annotations

from ...common.registry import Registry
from .schedule import Schedule

__all__ = ["SCHEDULES", "Schedule", "register_schedule"]

SCHEDULES: Registry[Schedule] = Registry("schedule", __name__, "SCHEDULES")


def register_schedule(schedule: Schedule) -> None:
    """Make a schedule available by its name.

    Raises:
        UserError: another one already has that name.
    """
    SCHEDULES.register(schedule)
