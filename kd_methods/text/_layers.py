"""What methods for text encoders require of the two networks."""

from __future__ import annotations

from typing import Any

from ..contract import Network
from ..errors import UserError


def width(network: Network) -> int:
    """The width of the hidden states."""
    return network.shape(network.layout.stem)[-1]


def check_width(method: str, student: Network, teacher: Network) -> None:
    """Raise UserError where hidden states, which the method compares as they are, differ in width."""
    if width(student) != width(teacher):
        raise UserError(
            f"method '{method}' needs hidden states of one width, here {width(student)} and {width(teacher)}"
        )


def depths(method: str, student: Network, teacher: Network) -> tuple[int, int]:
    """How many layers student and teacher have.

    Raises:
        UserError: the student has more, and there is no layer of the teacher for each of them.
    """
    n, m = len(student.layout.stages), len(teacher.layout.stages)
    if n > m:
        raise UserError(f"method '{method}' needs a teacher with as many layers as the student, here {m}")
    return n, m


def require_attention(method: str, student: Network, teacher: Network) -> None:
    """Raise UserError where one of the networks has no queries, keys and values of its own."""
    if not all(x.layout.queries and x.layout.keys and x.layout.values for x in (student, teacher)):
        raise UserError(f"method '{method}' reads queries, keys and values, and one of the networks has none apart")


def same_heads(method: str, student: Network, teacher: Network) -> int:
    """The number of attention heads.

    Raises:
        UserError: the two networks differ in it, or one has no queries, keys and values of its own.
    """
    require_attention(method, student, teacher)
    layouts: list[Any] = [student.layout, teacher.layout]
    if layouts[0].heads != layouts[1].heads:
        raise UserError(
            f"method '{method}' compares attention heads, here {layouts[0].heads} and {layouts[1].heads} of them"
        )
    return layouts[0].heads
