"""Which layers of two networks of different depth belong together."""

from __future__ import annotations


def evenly_spaced(count: int, total: int) -> list[int]:
    """Indices, from 0, of the layers that end ``count`` equal shares of ``total`` ones; the last is among them."""
    return [round(i * total / count) - 1 for i in range(1, count + 1)]
