"""FitNet hints, Romero et al. 2015."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..adapters import ConvReg
from ..contract import Batch, Card, DataInfo, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..errors import UserError
from ..registry import register


@register
class FitNet(Method):
    """Regresses the teacher's map of one middle stage from the student's."""

    card = Card(
        name="fitnet",
        version=1,
        family="feature",
        title="FitNet",
        paper="romero2015fitnets",
        formula="L = CE(z_s, y) + beta * MSE(regressor(F_s), F_t) at one stage",
        source="RepDistiller scripts/run_cifar_distill.sh (-b 100), models/util.py; mdistiller engine/cfg.py (layer 2)",
        optimum="where the regressed student map equals the teacher's",
        divergences=(
            "the paper trains up to the hint first, then by KD; here, as in every benchmark, one stage with CE + hint",
            "the regressor ends in a ReLU even where the teacher's stage is signed (WRN), as in RepDistiller",
        ),
    )
    needs = Needs(student=("stages",), teacher=("stages",), min_batch=2)

    class Settings(MethodSettings):
        beta: float = Field(100.0, ge=0, description="weight of the hint term")
        hint_stage: int = Field(2, ge=1, description="stage that is matched, counted from 1")

    settings: Settings

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__(student, teacher, info, settings)
        shapes = student.shapes("stages"), self.teacher.shapes("stages")
        self.index = self.settings.hint_stage - 1
        if self.index >= (least := min(map(len, shapes))):
            raise UserError(f"setting fitnet.hint_stage={self.index + 1}: the pair has {least} common stages")
        self.regressor = ConvReg(shapes[0][self.index], shapes[1][self.index])

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        regressed = self.regressor(student.stages[self.index])
        return Losses(
            task={"task": batch.loss(student.logits)},
            distill={"hint": self.settings.beta * functional.hint(regressed, teacher.stages[self.index])},
        )
