"""The one exception for mistakes a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong and what to do; the command line exits with 2."""


class DiskError(UserError):
    """A file cannot be written, or one that is there not be read: it concerns a whole run, not one cell of it."""


class Changed(UserError):
    """What a run was planned with is another thing now: it concerns all cells of the run, and a new plan."""


class Damaged(UserError):
    """A file is not what was written into it."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with its nearest neighbours."""
    names = sorted(known)
    by_lower_case = {n.lower(): n for n in reversed(names)}
    close = [by_lower_case[n] for n in difflib.get_close_matches(name.lower(), by_lower_case, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names) or 'none'}"
    return UserError(f"unknown {kind} '{name}'; {hint}")
