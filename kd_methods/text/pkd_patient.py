"""Patient knowledge distillation, Sun et al. 2019."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..errors import UserError
from ..registry import register
from ..views.layers import evenly_spaced
from ._layers import check_width, depths


class Settings(MethodSettings):
    alpha: float = Field(0.7, ge=0, le=1, description="share of the softened term, 1 - alpha is the task loss's")
    beta: float = Field(500.0, ge=0, description="weight of the patient term")
    temperature: float = Field(10.0, gt=0, description="temperature T of both softmaxes")
    layers: Literal["skip", "last"] = Field("skip", description="teacher layers: at equal shares, or the last ones")
    reduction: Literal["mean", "batchmean"] = Field("mean", description="KL over all values, or over rows")


@register
class PatientKD(Method[Settings]):
    """Matches, besides softened logits, the direction of the first token's hidden states in intermediate layers."""

    card = Card(
        name="pkd_patient",
        version=1,
        family="feature",
        title="PKD (patient)",
        paper="sun2019pkd",
        formula=(
            "L = (1 - alpha) * CE(z_s, y) + alpha * T^2 * KL(softmax(z_t / T) || softmax(z_s / T))"
            " + beta * mean (h_s / |h_s| - h_t / |h_t|)^2, h: first token after layers 1..n-1 of the student"
        ),
        source=(
            "intersun/PKD-for-BERT-Model-Compression src/argument_parser.py (alpha 0.7, T 10, beta 500), src/KD_loss.py"
        ),
        divergences=(
            "the paper sums KL over classes and the patient term over layers and values; the code, our default,"
            " averages both over all values (reduction=batchmean sums KL over classes)",
            "the authors train it at rate 1e-5, their fine-tuning and KD at the 2e-5 of the protocol here",
            "named apart from PKD by Pearson correlation, a method for detectors",
        ),
        modality="text",
        classes=1,
    )
    needs = Needs(student=("stages",), teacher=("stages", "logits"))

    def setup(self) -> None:
        check_width(self.card.name, self.student, self.teacher)
        n, m = depths(self.card.name, self.student, self.teacher)
        if n < 2:
            raise UserError(
                f"method '{self.card.name}' matches the layers before the last one; the student has one layer"
            )
        skip = self.settings.layers == "skip"
        self.layers = evenly_spaced(n, m)[:-1] if skip else list(range(m - n, m - 1))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        softened = functional.kd(student.logits, teacher.logits, temperature=config.temperature)
        if config.reduction == "mean":
            softened = softened / student.logits.shape[1]
        student_states = torch.stack([feature.hidden[:, 0] for feature in student.stages[:-1]], 1)
        teacher_states = torch.stack([teacher.stages[i].hidden[:, 0] for i in self.layers], 1)
        patient = functional.patient_states(student_states, teacher_states)
        return Losses(
            task={"task": (1 - config.alpha) * batch.loss(student.logits)},
            distill={"kd": config.alpha * softened, "patient": config.beta * patient},
        )
