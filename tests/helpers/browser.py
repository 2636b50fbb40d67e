"""A headless Chromium that is told what to do over a pipe, as its debugging protocol has it."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_KEYS: dict[str, dict[str, Any]] = {
    "Enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    "Tab": {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
}


class BrowserPage:
    """A page of the browser; ``requests`` are the addresses that it has asked for."""

    def __init__(self, writing: int, reading: int) -> None:
        self._writing, self._reading = writing, reading
        self._number, self._rest, self._session = 0, b"", ""
        self.requests: list[str] = []
        self._events: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": params, **session}
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + 200
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._reading, 1 << 16)
            assert chunk, "the browser has ended"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        self._events.append(message.get("method", ""))
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message

    def open(self, file: Path) -> None:
        self._events.clear()
        self("Page.navigate", url=file.as_uri())
        while "Page.loadEventFired" not in self._events:
            self._next()

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives."""
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def after(self, expression: str, wanted: Any) -> Any:
        """What an expression gives once it is what is wanted, or after some seconds."""
        for _ in range(50):
            if (value := self.value(expression)) == wanted:
                break
            self("Runtime.evaluate", expression="new Promise(done => setTimeout(done, 100))", awaitPromise=True)
        return value

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, **_KEYS[key])

    def type(self, text: str) -> None:
        self("Input.insertText", text=text)


@contextmanager
def browser(profile: Path) -> Iterator[BrowserPage]:
    """A page of a browser of its own, which ends with the block."""
    (theirs, writing), (reading, back) = os.pipe(), os.pipe()
    theirs, back = (fcntl.fcntl(old, fcntl.F_DUPFD, 20) for old in (theirs, back))
    arguments = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
    ]  # fmt: skip
    words = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{back}', "bash", *arguments]
    process = subprocess.Popen(words, pass_fds=(theirs, back), stderr=subprocess.DEVNULL)
    try:
        yield BrowserPage(writing, reading)
    finally:
        process.terminate()
        process.wait(30)
