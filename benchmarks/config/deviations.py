"""What a protocol does otherwise than the paper's, in words: a chain of lengths is one deviation."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..common.console import counted

_LENGTH = re.compile(r"(?P<own>\d+) epochs? instead of (?P<usual>\d+)(?P<rest>.*)", re.DOTALL)
_SCALED = re.compile(r"^, (milestones|warm-ups|milestones and warm-ups) scaled")


def shortest(deviations: Sequence[str]) -> tuple[str, ...]:
    """The same with one length: "10 epochs instead of 240" and then "5 instead of 10" is 5 instead of 240.

    A length that comes back to the usual one is no deviation; what else its sentence says stays.
    """
    out: list[str] = []
    place: int | None = None
    for text in deviations:
        length, earlier = _LENGTH.fullmatch(text), None if place is None else _LENGTH.fullmatch(out[place])
        if not length:
            out.append(text)
        elif place is not None and earlier and (earlier["own"], earlier["usual"]) == (length["own"], length["usual"]):
            out[place] = text
        elif place is None or earlier is None or earlier["own"] != length["usual"]:
            place = len(out)
            out.append(text)
        else:
            out[place] = _length(int(length["own"]), int(earlier["usual"]), earlier["rest"])
    return tuple(text for text in out if text)


def _length(epochs: int, usual: int, rest: str) -> str:
    if epochs == usual:
        return _SCALED.sub("", rest).removeprefix(",").strip()
    return f"{counted(epochs, 'epoch')} instead of {usual}{rest}"
