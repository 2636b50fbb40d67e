"""What methods on feature pyramids share."""

from __future__ import annotations

from torch import nn

from ..contract import Network
from ..errors import UserError

IMAGES = 2
"""Images on each GPU in the published set-ups (mmdet's coco_detection.py): over so many of them LD sums its places."""


def channels(method: str, student: Network, teacher: Network, *, convolved: bool = False) -> list[tuple[int, int]]:
    """Channels of the student's and the teacher's levels, from fine to coarse.

    Only of those that the neck convolves, if asked for: what a two-stage detector's region heads read. Its coarsest
    level is every second place of the one before.

    Raises:
        UserError: the two pyramids have different numbers of levels, or other strides.
    """
    student_shapes, teacher_shapes = student.shapes("stages"), teacher.shapes("stages")
    if [shape[1:] for shape in student_shapes] != [shape[1:] for shape in teacher_shapes]:
        raise UserError(
            f"method '{method}' needs pyramids with the same levels, here {len(student_shapes)} and"
            f" {len(teacher_shapes)} or of other strides"
        )
    levels = [(s[0], t[0]) for s, t in zip(student_shapes, teacher_shapes, strict=True)]
    return levels[: len(student.shape("pyramid"))] if convolved else levels


def check_edges(method: str, student: Network, teacher: Network) -> None:
    """Raise UserError unless both detectors give distributions of box edges over the same bins at every place."""
    try:
        bins = {network.shape("dense") for network in (student, teacher)}
    except UserError:
        raise UserError(
            f"method '{method}' needs detectors that give distributions of box edges, as GFL does"
        ) from None
    if len(bins) != 1:
        raise UserError(f"method '{method}' needs two detectors that divide the edges of boxes into the same bins")


def aligned(c_in: int, c_out: int) -> nn.Module:
    """A 1x1 convolution where widths differ."""
    return nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
