"""Processes that do one thing together: whoever answers, fails or is gone, all have ended."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
from helpers.shares import work

from benchmarks.common.process.together import Answer, Lost, together


@pytest.mark.parametrize(
    ("shares", "end", "words"),
    [
        (["answers"], Answer(3), ""),
        (["answers", "waits"], Answer(3), ""),
        (["waits", "fails"], Lost("process 1", "broken", True, False), "process 1: broken"),
        (["waits", "is killed"], Lost("process 1", "killed by SIGKILL", False, False), "process 1 killed by SIGKILL"),
        (["is killed"], Lost("the process", "killed by SIGKILL", False, False), "the process killed by SIGKILL"),
        (["says nothing"], Lost("the process", "ended with exit code 0", False, False), ""),
        (["says nothing"] * 2, Lost("they", "lost each other", False, False), "they lost each other"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, list) else "",
)
def test_how_it_ends(shares: list[str], end: Answer | Lost, words: str) -> None:
    heard: list[Any] = []
    assert together(work, shares, heard.append) == end
    assert heard == (["a word"] if shares[0] == "answers" else [])
    assert not words or not isinstance(end, Lost) or end.words == words
    assert not multiprocessing.active_children()


def test_the_first_one_is_asked_to_stop() -> None:
    heard: list[Any] = []
    assert together(work, ["is asked", "waits"], heard.append, lambda: heard == ["ready"]) == Answer("stopped")


def test_one_that_is_asked_before_it_listens_was_stopped() -> None:
    end = together(work, ["waits"], print, lambda: True)
    assert end == Lost("the process", "killed by SIGTERM", False, True)
