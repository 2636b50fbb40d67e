"""What methods for text encoders ask of the two networks."""

from __future__ import annotations

from typing import Any

from ..contract import Network
from ..errors import UserError


def same_width(method: str, student: Network, teacher: Network) -> int:
    """The width of the hidden states, which the method compares as they are.

    Raises:
        UserError: the two networks differ in it.
    """
    widths = [network.shape(network.layout.stem)[-1] for network in (student, teacher)]
    if widths[0] != widths[1]:
        raise UserError(f"method '{method}' needs hidden states of one width, here {widths[0]} and {widths[1]}")
    return widths[0]


def same_heads(method: str, student: Network, teacher: Network) -> int:
    """The number of attention heads.

    Raises:
        UserError: the two networks differ in it, or one has no queries, keys and values of its own.
    """
    layouts: list[Any] = [student.layout, teacher.layout]
    if not all(layout.queries and layout.keys and layout.values for layout in layouts):
        raise UserError(f"method '{method}' reads queries, keys and values, and one of the networks has none apart")
    if layouts[0].heads != layouts[1].heads:
        raise UserError(
            f"method '{method}' compares attention heads, here {layouts[0].heads} and {layouts[1].heads} of them"
        )
    return layouts[0].heads
