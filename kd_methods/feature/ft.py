"""Factor transfer, Kim et al. 2018: as benchmarks run it, and as the paper compares factors."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Phase, Progress
from ..errors import UserError
from ..registry import register
from ._maps import matched


def _encoder(c_in: int, c_out: int, norm: bool) -> nn.Sequential:
    """Three 3x3 convolutions with leaky ReLU; the width changes in the second."""
    layers: list[nn.Module] = []
    for a, b in ((c_in, c_in), (c_in, c_out), (c_out, c_out)):
        layers += [nn.Conv2d(a, b, 3, padding=1), *([nn.BatchNorm2d(b)] if norm else []), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """An auto-encoder of the teacher's last stage without batch-norm; its code is the teacher's factor."""

    def __init__(self, channels: int, code: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, code, norm=False)
        # The mirror image: the width changes in the second layer, too.
        widths = ((code, code), (code, channels), (channels, channels))
        self.decoder = nn.Sequential(
            *(x for a, b in widths for x in (nn.ConvTranspose2d(a, b, 3, padding=1), nn.LeakyReLU(0.1)))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class Settings(MethodSettings):
    beta: float = Field(200.0, ge=0, description="weight of the factor term")
    rate: float = Field(0.5, gt=0, description="channels of the code over those of the teacher's stage")
    epochs: float = Field(30.0, gt=0, description="epochs of the first phase")
    lr: float = Field(0.01, gt=0, description="learning rate of the first phase")


@register
class FT(Method[Settings]):
    """First learns a code of the teacher's last stage (the paraphraser), then translates the student's into it."""

    card = Card(
        name="ft",
        version=1,
        family="feature",
        title="FT",
        paper="kim2018ft",
        formula=(
            "first phase: MSE(decoder(P(F_t)), F_t); then"
            " L = CE(z_s, y) + beta * mean |a(T(F_s)) - a(P(F_t))|, a(f) = normalised mean_c f^2"
        ),
        source="RepDistiller distiller_zoo/FT.py, models/util.py, run_cifar_distill.sh (-b 200), init_epochs 30",
        optimum="where the translated and the paraphrased factor have the same energy at every position",
        divergences=(
            "factors are compared by their spatial energy, as in RepDistiller, whose published table this repeats; the"
            " authors compare them flattened: ft.paper",
            "the first phase has learning rate 0.01 for every network; RepDistiller has that for ResNets and WRNs, and"
            " the student's own for others",
        ),
    )
    needs = Needs(student=("stages",), teacher=("stages",), min_batch=2)
    phase_needs = Needs(teacher=("stages",))

    spatial = True
    translator_norm = True

    def setup(self) -> None:
        s, t = matched(self.card.name, self.student, self.teacher)[-1]
        if self.spatial and 1 in (s[1] * s[2], t[1] * t[2]):
            raise UserError("method 'ft' compares where the last stages have energy, and a 1x1 map has one place only")
        code = max(1, int(t[0] * self.settings.rate))
        self.paraphraser = Paraphraser(t[0], code)
        self.translator = _encoder(s[0], code, norm=self.translator_norm)

    def phases(self) -> tuple[Phase, ...]:
        config = self.settings
        return (Phase("paraphraser", config.epochs, self._paraphrase, self.phase_needs, config.lr, student=False),)

    def _paraphrase(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        target = teacher.stages[-1]
        rebuilt = self.paraphraser.decoder(self.paraphraser(target))
        return Losses(distill={"paraphraser": functional.hint(rebuilt, target)})

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        factors = self.translator(student.stages[-1]), self.paraphraser(teacher.stages[-1]).detach()
        return Losses(
            task={"task": batch.loss(student.logits)},
            distill={"factor": self.settings.beta * self.distance(*factors)},
        )

    def distance(self, student_factor: Tensor, teacher_factor: Tensor) -> Tensor:
        return functional.factor_transfer(student_factor, teacher_factor)


class FTPaperSettings(Settings):
    beta: float = Field(500.0, ge=0, description="weight of the factor term")


@register
class FTPaper(FT):
    """FT with the flattened factors compared, as the paper and its authors do."""

    card = replace(
        FT.card,
        name="ft.paper",
        version=2,
        title="FT (paper)",
        formula=(
            "first phase: MSE(decoder(P(F_t)), F_t); then"
            " L = CE(z_s, y) + beta * mean |n(T(F_s)) - n(P(F_t))|, n(f) = f / ||f||_2, flattened"
        ),
        source="authors' Factor-Transfer-pytorch train_student.py, utils.py (beta 500, rate 0.5); phase as in ft",
        optimum="where the translated student factor is proportional to the teacher's",
        divergences=(
            "loss, learning rate and length of the first phase are RepDistiller's (see ft); the authors' code has the"
            " mean absolute error, rate 0.1 and 6 epochs",
            "the translator has no batch-norm, as in the authors' code; RepDistiller's, and so ft's, has",
            "maps of different sizes are average-pooled to the smaller one",
        ),
    )

    spatial = False
    translator_norm = False

    Settings = FTPaperSettings

    def distance(self, student_factor: Tensor, teacher_factor: Tensor) -> Tensor:
        return functional.factor_direction(student_factor, teacher_factor)
