"""The connectors between a student's blocks and a teacher's: of maps, of tokens, and between the two."""

from __future__ import annotations

from torch import Tensor, nn

from ..contract import Tokens
from ..contract.patches import as_map, as_tokens, map_shape
from ..errors import UserError
from ..feature._connectors import Connector, ConnectorKind


def connector(
    student_shape: tuple[int, ...],
    teacher_shape: tuple[int, ...],
    rectify: bool,
    kind: ConnectorKind,
    prefixes: tuple[int | None, int | None] = (None, None),
) -> nn.Module:
    """The connector between two outputs, of maps (C, H, W) or of tokens (L, D).

    ``prefixes`` are the tokens of student and teacher that stand for no patch. Tokens of one number go to tokens one by
    one; between tokens and maps, and tokens of another number, the connector is that of maps.
    """
    shapes = [student_shape, teacher_shape]
    tokens = [len(shape) == 2 for shape in shapes]
    if not any(tokens):
        return Connector(student_shape, teacher_shape, rectify, kind)
    if all(tokens) and (student_shape[0] == teacher_shape[0] or prefixes == (None, None)):
        return TokenConnector(student_shape[1], teacher_shape[1], kind)
    if any(is_tokens and prefix is None for is_tokens, prefix in zip(tokens, prefixes, strict=True)):
        raise UserError(f"tokens {shapes} are no square of patches, they cannot be connected; use another pair")
    return PatchConnector(student_shape, teacher_shape, rectify, kind, prefixes)


class TokenConnector(nn.Module):
    """Maps hidden states to what the next layer of the teacher expects: a linear map where widths differ, LayerNorm.

    Our reading of Block-KD (arXiv 2411.01547) for encoders; ``identity`` leaves the states as they are.

    Raises:
        UserError: a kind that is for maps, or ``identity`` with widths that differ.
    """

    def __init__(self, student_width: int, teacher_width: int, kind: ConnectorKind = "conv1x1") -> None:
        super().__init__()
        if kind == "identity" and student_width != teacher_width:
            raise UserError(
                f"connector 'identity' needs equal widths, here {student_width} and {teacher_width}; use 'conv1x1'"
            )
        if kind not in ("identity", "conv1x1"):
            raise UserError(
                f"connector '{kind}' is for feature maps; tokens have 'conv1x1' (a linear map) or 'identity'"
            )
        wider = nn.Identity() if student_width == teacher_width else nn.Linear(student_width, teacher_width)
        self.body = nn.Identity() if kind == "identity" else nn.Sequential(wider, nn.LayerNorm(teacher_width))

    def forward(self, x: Tensor | Tokens) -> Tensor | Tokens:
        """(B, L, D_s) to (B, L, D_t)."""
        return Tokens(self.body(x.hidden), x.inputs) if isinstance(x, Tokens) else self.body(x)


class PatchConnector(nn.Module):
    """A :class:`Connector` where student, teacher or both have tokens of patches: these are maps for it.

    The student's class token is left out; the teacher's is the mean of the connected patches (our choice).
    """

    def __init__(
        self,
        student_shape: tuple[int, ...],
        teacher_shape: tuple[int, ...],
        rectify: bool,
        kind: ConnectorKind,
        prefixes: tuple[int | None, int | None],
    ) -> None:
        super().__init__()
        shapes = [
            map_shape(shape, prefix or 0) if len(shape) == 2 else shape
            for shape, prefix in zip((student_shape, teacher_shape), prefixes, strict=True)
        ]
        self.prefix, self.target = prefixes[0] or 0, prefixes[1] if len(teacher_shape) == 2 else None
        self.inner = Connector(shapes[0], shapes[1], rectify, kind)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, L, D) or a map (B, C, H, W) to what the teacher has of both."""
        mapped = self.inner(as_map(x, self.prefix) if x.dim() == 3 else x)
        return mapped if self.target is None else as_tokens(mapped, self.target)
