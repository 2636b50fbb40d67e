"""TinyBERT, Jiao et al. 2020."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Phase, Progress
from ..registry import register
from ..views.layers import evenly_spaced
from ._layers import depths, same_heads, width

FIELDS = ("stem", "stages", "queries", "keys")


class Settings(MethodSettings):
    attention: float = Field(1.0, ge=0, description="weight of the attention scores in the first phase")
    hidden: float = Field(1.0, ge=0, description="weight of hidden states and embeddings in the first phase")
    intermediate_epochs: float = Field(10.0, gt=0, description="epochs of the first phase")
    intermediate_lr: float = Field(5e-5, gt=0, description="learning rate of the first phase")
    soft: float = Field(1.0, ge=0, description="weight of the logits' term in the second phase")
    hard: float = Field(0.0, ge=0, description="weight of the task loss in the second phase")
    temperature: float = Field(1.0, gt=0, description="temperature T of both softmaxes")


@register
class TinyBERT(Method[Settings]):
    """First matches embeddings, hidden states and attention of every layer, then the logits."""

    card = Card(
        name="tinybert",
        version=2,
        family="feature",
        title="TinyBERT",
        paper="jiao2020tinybert",
        formula=(
            "first: sum_m [MSE(A_s,m, A_t,g(m)) + MSE(W h_s,m, h_t,g(m))] + MSE(W e_s, e_t), A before the softmax,"
            " g(m) = m * N / M; then: T^2 * KL(softmax(z_t / T) || softmax(z_s / T)) + hard * CE(z_s, y); for a value"
            " to be predicted (STS-B) the task's loss in place of the KL"
        ),
        source="huawei-noah/Pretrained-Language-Model TinyBERT/task_distill.py; T 1, 10 epochs at 5e-5 first",
        optimum="where hidden states (after W), attention and logits agree",
        divergences=(
            "task-specific distillation only: no general distillation before it, no augmented data",
            "padding is left out of the means; the reference code averages over it",
            "the second phase's KL is summed over classes and averaged over rows; the code averages over classes too",
        ),
        modality="text",
        classes=1,
        waits="means over the tokens that are no padding: how many there are is a shape",
        batch="global",
    )
    needs = Needs(teacher=("logits",))
    task_weights = ("hard",)
    phase_needs = Needs(student=FIELDS, teacher=FIELDS)

    def setup(self) -> None:
        self.heads = same_heads(self.card.name, self.student, self.teacher)
        self.fit = nn.Linear(width(self.student), width(self.teacher))
        self.layers = evenly_spaced(*depths(self.card.name, self.student, self.teacher))

    def phases(self) -> Sequence[Phase]:
        config = self.settings
        needs = self.phase_needs
        assert needs is not None
        return (Phase("intermediate", config.intermediate_epochs, self._layers, needs, config.intermediate_lr),)

    def _layers(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        mask = student.stem.mask
        targets = [teacher.stem, *(teacher.stages[i] for i in self.layers)]
        states = [
            functional.hidden_states(self.fit(state.hidden), target.hidden, mask)
            for state, target in zip((student.stem, *student.stages), targets, strict=True)
        ]
        scores = [
            functional.attention_scores(
                (student.queries[m], student.keys[m]), (teacher.queries[i], teacher.keys[i]), mask, heads=self.heads
            )
            for m, i in enumerate(self.layers)
        ]
        config = self.settings
        return Losses(
            distill={
                "hidden": config.hidden * torch.stack(states).sum(),
                "attention": config.attention * torch.stack(scores).sum(),
            }
        )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        if self.info.regression:
            return Losses(task={"task": (config.soft + config.hard) * batch.loss(student.logits)})
        task = {"task": config.hard * batch.loss(student.logits)} if config.hard else {}
        softened = functional.kd(student.logits, teacher.logits, temperature=config.temperature)
        return Losses(task=task, distill={"kd": config.soft * softened})
