"""Who follows a training in tests."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.common.events import CellEnded, EpochEnded, Event, LeftOut, Said, Stepped

CellEvent = Stepped | EpochEnded | CellEnded


def kind(event: CellEvent) -> str:
    """``step``, ``epoch``, or how the cell ended."""
    return "step" if isinstance(event, Stepped) else "epoch" if isinstance(event, EpochEnded) else event.state


class ForwardingWatcher:
    """A watcher that passes on events of cells and lines apart."""

    def __init__(
        self, report: Callable[[CellEvent], None] = lambda event: None, say: Callable[[str], None] = print
    ) -> None:
        self.report, self.say = report, say

    def __call__(self, event: Event) -> None:
        if isinstance(event, Said | LeftOut):
            self.say(event.line)
        else:
            self.report(event)
