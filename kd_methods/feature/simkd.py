"""Distillation with the reused teacher classifier, Chen et al. 2022."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..errors import UserError
from ..functional.feature import pooled, same_size, smaller_size
from ..registry import register
from ._connectors import spatial
from ._maps import only_pools

PROJECTED = "simkd_projector"
"""The unit that the projected map is the output of."""


class Projector(nn.Sequential):
    """Layers to the teacher's channels, after pooling larger maps to the teacher's size; tokens are a row of places."""

    def __init__(self, teacher_shape: tuple[int, ...], layers: Iterable[nn.Module]) -> None:
        super().__init__(*layers)
        self.size = (teacher_shape[-2], teacher_shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return super().forward(spatial(x)).squeeze(2).transpose(1, 2)
        return super().forward(pooled(x, smaller_size(x.shape, self.size)))


def bottleneck(c_in: int, c_out: int, factor: int, tokens: bool = False) -> Iterator[nn.Module]:
    """1x1, 3x3 and 1x1 convolutions, narrower within by ``factor``, each with BN and ReLU; of tokens three in a row."""
    mid = max(1, c_out // factor)
    for a, b, kernel in ((c_in, mid, 1), (mid, mid, 3), (mid, c_out, 1)):
        size = (1 if tokens else kernel, kernel)
        yield nn.Conv2d(a, b, size, padding=(size[0] // 2, size[1] // 2), bias=False)
        yield nn.BatchNorm2d(b)
        yield nn.ReLU()


class Settings(MethodSettings):
    beta: float = Field(1.0, ge=0, description="weight of the feature term")
    factor: int = Field(2, ge=1, description="reduction of the projector's width")


@register
class SimKD(Method[Settings]):
    """Trains the student's features for what follows them in the teacher, which replaces the student's own."""

    card = Card(
        name="simkd",
        version=3,
        family="feature",
        title="SimKD",
        paper="chen2022simkd",
        formula=(
            "L = beta * MSE(P(F_s), F_t) on the last maps; prediction by what follows the teacher's last map, after P"
        ),
        source="authors' models/util.py (SimKD) and README (CE 0, KD 0, beta 1, factor 2)",
        optimum="where the projected student map equals the teacher's",
        divergences=(
            "what followed in the student is removed: it would receive no gradient and is not deployed",
            "as in the authors' code a student that ends in a convolution to another width (MobileNetV2, ShuffleNetV2)"
            " is cut before it (their ImageNet ShuffleNetV2 is not); WRN students, which they do not have, after the"
            " final BN and ReLU",
            "trunk, P and the teacher's end are deployed; their size and cost count as the student's",
            "the authors' teachers pool and have one linear layer; what others have after the last map is kept whole",
            "the projector of tokens looks at three in a row instead of 3x3 places",
            "labels are not used",
        ),
    )
    needs = Needs(student=("last_map",), teacher=("last_map",), min_batch=2)

    def setup(self) -> None:
        self.student_unit, self.teacher_unit = self.ends()
        shapes = self.student.shape(self.student_unit), self.teacher.shape(self.teacher_unit)
        self.projector = self.make_projector(*shapes)
        if len(shapes[0]) == 3 and shapes[0][-1] < shapes[1][-1] and not only_pools(self.teacher):
            raise UserError(
                f"method '{self.card.name}' needs a student whose last map is as large as the teacher's, or a teacher "
                f"that only pools after it; here {shapes[0]} and {shapes[1]}"
            )
        self.needs = Needs(student_units=(PROJECTED,), teacher_units=(self.teacher_unit,), min_batch=2)

    def ends(self) -> tuple[str, str]:
        """The units after which student and teacher are cut."""
        stage, last = self.student.layout.stages[-1], self.student.layout.last_map
        before, after = self.student.shape(stage), self.student.shape(last)
        widened = len(before) == len(after) == 3 and before[0] != after[0] and before[1:] == after[1:]
        return stage if widened else last, self.teacher.layout.last_map

    def make_projector(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> Projector:
        """From a map (C, H, W) of the student to the teacher's channels, at the smaller one of their sizes.

        Or from tokens (L, D) to the teacher's width.
        """
        tokens = len(student_shape) == 2
        if (
            len(student_shape) != len(teacher_shape)
            or len(student_shape) == 1
            or (tokens and student_shape[0] != teacher_shape[0])
        ):
            raise UserError(
                f"method '{self.card.name}' needs maps on both sides, or as many tokens, here {student_shape} and "
                f"{teacher_shape}; use another method for this pair"
            )
        c_in, c_out = (shape[-1] if tokens else shape[0] for shape in (student_shape, teacher_shape))
        return Projector(teacher_shape, self.layers(c_in, c_out, tokens))

    def layers(self, c_in: int, c_out: int, tokens: bool) -> Iterable[nn.Module]:
        """What a projector consists of."""
        return bottleneck(c_in, c_out, self.settings.factor, tokens)

    def adapt(self, student: Network) -> Network:
        return student.with_teacher_tail(self.student_unit, PROJECTED, self.projector, self.teacher, self.entry())

    def entry(self) -> str:
        """The teacher's unit behind which its end begins."""
        return self.teacher_unit

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        s, t = same_size(student[PROJECTED], teacher[self.teacher_unit])
        return Losses(distill={"feature": self.settings.beta * functional.hint(s, t)})
