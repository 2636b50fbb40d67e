"""Which stepping stones a method has."""

from __future__ import annotations

from ..errors import UserError


def active_stones(method: str, wanted: tuple[int, ...] | None, n: int, least: int = 0) -> list[int]:
    """The stones in use of ``n``, from 1, ascending; those that are ``wanted`` may be counted from the end; None: all.

    Raises:
        UserError: there is no such stone, or fewer than ``least`` are wanted.
    """
    chosen = tuple(range(1, n + 1)) if wanted is None else wanted
    if odd := [i for i in chosen if i == 0 or abs(i) > n]:
        raise UserError(f"setting {method}.active_stones: no stone {odd[0]}; this pair has stones 1 to {n}")
    stones = sorted({i if i > 0 else n + 1 + i for i in chosen})
    if len(stones) < least:
        raise UserError(f"setting {method}.active_stones: at least {least} of the stones 1 to {n}")
    return stones
