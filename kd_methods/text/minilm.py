"""MiniLM, Wang et al. 2020."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register
from ._layers import same_heads

FIELDS = ("stages", "queries", "keys", "values")


class Settings(MethodSettings):
    task: float = Field(1.0, ge=0, description="weight of the task loss")
    attention: float = Field(1.0, ge=0, description="weight of the attention distributions")
    values: float = Field(1.0, ge=0, description="weight of the values' relation")


@register
class MiniLM(Method[Settings]):
    """Matches the last layer's self-attention: its distributions and the relation of its values."""

    card = Card(
        name="minilm",
        version=1,
        family="relation",
        title="MiniLM",
        paper="wang2020minilm",
        formula=(
            "L = task * CE(z_s, y) + attention * KL(softmax(Q_t K_t^T / sqrt d) || softmax(Q_s K_s^T / sqrt d))"
            " + values * KL(softmax(V_t V_t^T / sqrt d) || softmax(V_s V_s^T / sqrt d)), last layer, mean over heads"
            " and rows"
        ),
        source="arXiv 2002.10957 for the terms, weighted alike there",
        optimum="where queries, keys and values of the last layer agree",
        divergences=(
            "the paper distils in pre-training, then fine-tunes; here the terms stand beside the task's loss while the"
            " student is fine-tuned, so the task's weight is our choice",
            "no teacher assistant",
        ),
        our_choice=("task",),
        modality="text",
        classes=1,
        waits="means over the tokens that are no padding: how many there are is a shape",
        batch="global",
    )
    needs = Needs(student=FIELDS, teacher=FIELDS)

    def setup(self) -> None:
        self.heads = same_heads(self.card.name, self.student, self.teacher)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config, mask = self.settings, student.stages[-1].mask
        attention, values = (
            functional.attention_relation(pair(student), pair(teacher), mask, heads=self.heads)
            for pair in (
                lambda outputs: (outputs.queries[-1], outputs.keys[-1]),
                lambda outputs: (outputs.values[-1], outputs.values[-1]),
            )
        )
        return Losses(
            task={"task": config.task * batch.loss(student.logits)},
            distill={"attention": config.attention * attention, "values": config.values * values},
        )
