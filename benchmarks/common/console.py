"""What is said to a person beside the results; what comes of a command; streams that nobody takes from any more."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO


def say(line: str) -> None:
    """Print a line on the standard error stream. That it cannot be written is no failure of what is said."""
    if sys.stderr:  # None where it was closed before the start
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def percent(share: float) -> str:
    """A share with three digits: ``1.34%``."""
    return f"{100 * share:.3g}%"


def counted(number: int, noun: str) -> str:
    """1 cell, 2 cells."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True)
class Outcome:
    """What a command ends with: a text to print, and in one line what is missing of what was asked for, if anything."""

    text: str = ""
    missing: str = ""


def first_of(names: Sequence[str], most: int) -> str:
    """Names in one line, of many the first ones alone."""
    return ", ".join([*names[:most], *(["…"] if len(names) > most else [])])


@contextlib.contextmanager
def patient_streams() -> Iterator[dict[str, str]]:
    """Inside, nothing that prints fails where nobody takes what is printed: a closed pipe, a full disk.

    Yields:
        The streams that lost something, by name, with the reason; filled in as it happens.
    """
    lost: dict[str, str] = {}
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):  # a letter that a locale has not ends no run that was computed
            stream.reconfigure(errors="backslashreplace")
    patient = [
        stream and _Patient(stream, name, lost)
        for stream, name in zip(before, ("standard output", "standard error"), strict=True)
    ]
    sys.stdout, sys.stderr = patient  # type: ignore[assignment]
    try:
        yield lost
    finally:
        sys.stdout, sys.stderr = before


class _Patient:
    """A stream that leads nowhere once it could not be written to."""

    def __init__(self, stream: TextIO, name: str, lost: dict[str, str]) -> None:
        self._stream, self._name, self._lost = stream, name, lost

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._lost[self._name] = error.strerror or str(error)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError):
            os.dup2(nowhere, self._stream.fileno())  # for what is left in the stream's buffer, and for child processes
        os.close(nowhere)
