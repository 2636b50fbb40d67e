"""Quantities in words."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """12 s, 3 min, 4.5 h, 12 days."""
    for limit, unit, size in ((100, "s", 1), (100 * 60, "min", 60), (72 * 3600, "h", 3600)):
        if seconds < limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if unit == "h" else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def flops(operations: float) -> str:
    """113 GFLOP, 4.2 PFLOP."""
    size, prefix = 1.0, ""
    for larger in "kMGTPE":
        if operations < 999.5 * size:
            break
        size, prefix = 1000 * size, larger
    return f"{operations / size:.3g} {prefix}FLOP"
