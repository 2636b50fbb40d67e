"""What feature methods share: which maps of a pair belong together."""

from __future__ import annotations

import math

import torch

from ..contract import Network
from ..errors import UserError
from ..views.modes import modes_kept

Shape = tuple[int, ...]


def matched(
    name: str, student: Network, teacher: Network, field: str = "stages", from_first: bool = False
) -> list[tuple[Shape, Shape]]:
    """Shapes (C, H, W) of the student's and the teacher's maps that belong together.

    Where one network has more, they are counted from the last backwards, or from the first on.

    Raises:
        UserError: an output is not a map.
    """
    student_shapes, teacher_shapes = student.shapes(field), teacher.shapes(field)
    n = min(len(student_shapes), len(teacher_shapes))
    chosen = slice(n) if from_first else slice(-n, None)
    pairs = list(zip(student_shapes[chosen], teacher_shapes[chosen], strict=True))
    if any(len(shape) != 3 for pair in pairs for shape in pair):
        raise UserError(f"method '{name}' needs {field} that are maps (C, H, W); use another method for this pair")
    return pairs


def require_signs(name: str, student: Network, teacher: Network) -> None:
    """Whether what goes into the ReLUs at the ends of the stages can be had, of those stages that are matched.

    Raises:
        UserError: of one only what comes out of its ReLU can be had, which says nothing of negative values.
    """
    n = min(len(student.layout.preacts), len(teacher.layout.preacts))
    for role, layout in (("student", student.layout), ("teacher", teacher.layout)):
        for unit in layout.preacts[-n:]:
            if unit in layout.rectified:
                raise UserError(
                    f"method '{name}' compares what goes into ReLUs, and of the {role}'s unit '{unit}' only what comes"
                    " out can be had; use another method for this pair"
                )


def only_pools(network: Network) -> bool:
    """Whether the vector that a network's classifier sees is the mean of its last map, and nothing else."""
    shape, layout = network.shape(network.layout.last_map), network.layout
    if len(shape) != 3 or network.shapes("pooled")[0] != shape[:1]:
        return False
    weight = next(network.module.parameters())
    if weight.is_meta:  # shapes are all that there is to see
        return True
    x = torch.linspace(0, 1, 2 * math.prod(shape)).to(weight).view(2, *shape)
    with modes_kept(network), torch.no_grad():
        pooled = network.eval().resume(layout.last_map, x, until=layout.pooled)
    return bool(torch.allclose(pooled, x.mean((2, 3)), atol=1e-4))
