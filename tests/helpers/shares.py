"""What processes do that work together in tests."""

from __future__ import annotations

import os
import signal
import time

from benchmarks.common.process.children import Send
from benchmarks.common.process.signals import stop_signals
from benchmarks.common.process.together import Answer, BesideFailed

FOREVER = 60.0


def work(send: Send, share: str) -> None:
    match share:
        case "answers":
            send("a word")
            send(Answer(3))
        case "fails":
            send(BesideFailed("broken"))
            time.sleep(FOREVER)
        case "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "says nothing":
            pass
        case "waits":
            time.sleep(FOREVER)
        case "is asked":
            with stop_signals(signal.SIGTERM) as stopping:
                send("ready")
                while not stopping():
                    time.sleep(0.01)
                send(Answer("stopped"))
