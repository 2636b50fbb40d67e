"""A gift from knowledge distillation: the flow of the solution procedure, Yim et al. 2017."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Phase, Progress
from ..errors import UserError
from ..registry import register


class Settings(MethodSettings):
    epochs: float = Field(30.0, gt=0, description="epochs of the first phase")


@register
class FSP(Method[Settings]):
    """First matches the Gram matrices between the channels of consecutive stages, then trains as usual."""

    card = Card(
        name="fsp",
        version=1,
        family="feature",
        title="FSP",
        paper="yim2017fsp",
        formula=(
            "first phase: sum_l mean((G_s,l - G_t,l)^2), G_l = mean over positions of F_l F_{l-1}', F_0 = stem;"
            " then L = CE(z_s, y)"
        ),
        source="RepDistiller distiller_zoo/FSP.py, helper/pretrain.py, train_student.py (init_epochs 30)",
        optimum="in the first phase where the Gram matrices agree; features need not",
        divergences=(
            "RepDistiller's published command gives the term a weight of 50 that its code never applies in the first"
            " phase and multiplies by zero in the second; there is no such setting here",
            "the paper takes the maps at both ends of each residual module and weights their terms equally",
        ),
    )
    needs = Needs()
    phase_needs = Needs(student=("stem", "stages"), teacher=("stem", "stages"), min_batch=2)

    def setup(self) -> None:
        student_channels, teacher_channels = (
            [shape[0] if len(shape) == 3 else 0 for name in ("stem", "stages") for shape in network.shapes(name)]
            for network in (self.student, self.teacher)
        )
        if student_channels != teacher_channels or 0 in student_channels:
            raise UserError(
                f"method 'fsp' needs maps of equal channels at stem and stages, here {_text(student_channels)} and"
                f" {_text(teacher_channels)}"
            )

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("flow", self.settings.epochs, self._flow, self.phase_needs),)

    def _flow(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        term = functional.fsp((student.stem, *student.stages), (teacher.stem, *teacher.stages))
        return Losses(distill={"flow": term})

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        return Losses(task={"task": batch.loss(student.logits)})


def _text(channels: list[int]) -> str:
    return "/".join(str(count) if count else "tokens" for count in channels)
