"""FitNet hints, Romero et al. 2015: in one stage, as every benchmark runs them, and in two, as the paper does."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Phase, Progress
from ..errors import UserError
from ..registry import register
from ._connectors import ConvReg


class Settings(MethodSettings):
    beta: float = Field(100.0, ge=0, description="weight of the hint term")
    hint_stage: int = Field(2, ge=1, description="stage that is matched, counted from 1")


@register
class FitNet(Method[Settings]):
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
            "the paper trains up to the hint first, then by KD (fitnet.paper); the default is one stage with CE + hint,"
            " as in every benchmark",
            "the regressor ends in a ReLU even where the teacher's stage is signed (WRN), as in RepDistiller",
        ),
    )
    needs = Needs(student=("stages",), teacher=("stages",), min_batch=2)

    def setup(self) -> None:
        shapes = self.student.shapes("stages"), self.teacher.shapes("stages")
        self.index = self.settings.hint_stage - 1
        if self.index >= (least := min(map(len, shapes))):
            raise UserError(f"setting fitnet.hint_stage={self.index + 1}: the pair has {least} common stages")
        self.regressor = ConvReg(shapes[0][self.index], shapes[1][self.index])

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        regressed = self.regressor(student.stages[self.index])
        return Losses(
            task={"task": batch.loss(student.logits)},
            distill={"hint": self.settings.beta * functional.hint(regressed, teacher.stages[self.index])},
        )


class FitNetPaperSettings(MethodSettings):
    hint_stage: int = Field(2, ge=1, description="stage that is matched, counted from 1")
    epochs: float = Field(30.0, gt=0, description="epochs of the first phase")
    weight: float = Field(4.0, ge=0, description="weight of the KD term at the start; a quarter of it at the end")
    temperature: float = Field(3.0, gt=0, description="temperature of the KD term")


@register
class FitNetPaper(FitNet):
    """FitNet in two stages: the student up to the hint first, then the whole student by KD."""

    card = replace(
        FitNet.card,
        name="fitnet.paper",
        version=2,
        title="FitNet (paper)",
        formula=(
            "first phase: MSE(regressor(F_s), F_t) / 2 at one stage; then"
            " L = CE(z_s, y) + w * KD(z_s, z_t; T), w falls linearly from weight to a quarter of it"
        ),
        source="the paper's equations 1 and 3, algorithm 1; adri-romsor/FitNets yaml/cifar100_fitnet19_all.yaml (T 3,"
        " weight 4 to 1), costs/HintCost.py @0f633b1",
        optimum="in the first phase where the regressed student map equals the teacher's, then where the logits agree",
        divergences=(
            "the paper ends the first phase when its validation error no longer falls; here it has a fixed length",
            "KD carries the factor T^2 as everywhere in this suite",
            "the regressor has batch-norm; the authors' is one convolution and what follows it, and none where the"
            " shapes agree",
            FitNet.card.divergences[-1],
        ),
        our_choice=("epochs",),
    )
    needs = Needs(teacher=("logits",))
    phase_needs = Needs(student=("stages",), teacher=("stages",), min_batch=2)

    Settings = FitNetPaperSettings

    settings: FitNetPaperSettings  # type: ignore[assignment]

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("hint", self.settings.epochs, self._hint, self.phase_needs),)

    def _hint(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        regressed = self.regressor(student.stages[self.index])
        return Losses(distill={"hint": functional.hint(regressed, teacher.stages[self.index]) / 2})

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        weight = config.weight * progress.mean(lambda epoch: 1 - 0.75 * epoch / progress.epochs)
        kd = functional.kd(student.logits, teacher.logits, temperature=config.temperature)
        return Losses(task={"task": batch.loss(student.logits)}, distill={"kd": weight * kd})
