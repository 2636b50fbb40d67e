"""Published values: tables/published/*.csv. Imports no torch."""

from __future__ import annotations

import functools
from typing import Literal

from kd_methods.strict import Strict

from ..common.files import read_csv
from ..common.places import PUBLISHED


class PublishedLine(Strict):
    """A line of a file of tables/published/: what a source gives for a method on a pair."""

    method: str
    pair: str
    value: float
    std: float | None = None
    source: str
    epoch_rule: Literal["last", "best", "unknown"]
    protocol: str
    teacher: str
    note: str = ""


@functools.cache
def literature(name: str) -> list[PublishedLine]:
    """The lines of a file of tables/published/.

    Raises:
        UserError: there is none, or a line is malformed (file and line are named).
    """
    return read_csv(PUBLISHED / name, PublishedLine)
