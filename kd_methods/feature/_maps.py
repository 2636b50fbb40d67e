"""What feature methods share: which maps of a pair belong together."""

from __future__ import annotations

from ..contract import Network
from ..errors import UserError

Shape = tuple[int, ...]


def matched(name: str, student: Network, teacher: Network, field: str = "stages") -> list[tuple[Shape, Shape]]:
    """Shapes (C, H, W) of the student's and the teacher's maps that belong together, counted from the last backwards.

    Raises:
        UserError: an output is not a map.
    """
    ours, theirs = student.shapes(field), teacher.shapes(field)
    n = min(len(ours), len(theirs))
    pairs = list(zip(ours[-n:], theirs[-n:], strict=True))
    if any(len(shape) != 3 for pair in pairs for shape in pair):
        raise UserError(f"method '{name}' needs {field} that are maps (C, H, W); use another method for this pair")
    return pairs
