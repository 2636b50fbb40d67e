"""What a process sends of its cells: every step is counted, and few messages are sent."""

from __future__ import annotations

import pickle
from typing import Any

from benchmarks.common.events import CellEnded, EpochEnded, EpochRecord, LeftOut, Said, Stepped
from benchmarks.driver.engines.sending import Sender


def test_steps_are_sent_together_before_what_follows_them() -> None:
    sent: list[Any] = []
    watch, cell, other = Sender(sent.append), ("key", "label"), ("other", "other")
    record = EpochRecord(epoch=1, metrics={})
    for step in range(1, 5):
        watch(Stepped(*cell, (1, step)))
    watch(Stepped(*other, (1, 1)))
    events = [Said("a word"), EpochEnded(*cell, record), CellEnded(*cell, "done"), LeftOut("another")]
    for event in events:
        watch(event)  # type: ignore[arg-type]
    assert (
        sent
        == [
            Stepped(*cell, (1, 1)),  # progress learns from it where the cell begins
            Stepped(*other, (1, 1)),
            events[0],
            Stepped(*cell, (1, 4), steps=3),
            *events[1:],
        ]
    )
    assert pickle.loads(pickle.dumps(sent)) == sent
