"""Who follows a training in tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class ForwardingWatcher:
    """A watcher that passes on what it is called with."""

    def __init__(
        self, report: Callable[[Any, str], None] = lambda *_: None, say: Callable[[str], None] = print
    ) -> None:
        self.report, self.print_line = report, say

    def __call__(self, student_run: Any, event: str, /) -> None:
        self.report(student_run, event)

    def say(self, line: str, /) -> None:
        self.print_line(line)

    def left_out(self) -> None:
        """Not counted."""
