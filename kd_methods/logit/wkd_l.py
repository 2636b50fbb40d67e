"""Wasserstein distance of class probabilities, Lv et al. 2024."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from .. import functional
from ..analysis.class_distances import class_distances
from ..contract import (
    Batch,
    Card,
    Losses,
    Method,
    MethodSettings,
    Needs,
    Outputs,
    Progress,
    TeacherPass,
)
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    weight: float = Field(1.0, ge=0, description="weight of both distillation terms together")
    gamma: float = Field(600.0, ge=0, description="weight of the transport against the target term")
    temperature: float = Field(8.0, gt=0, description="temperature T of the transported probabilities")
    sharpness: float = Field(1.0, gt=0, description="factor on the distances in the cost's exponent")
    regularization: float = Field(0.05, gt=0, description="entropic regularisation of the plan")
    iterations: int = Field(10, ge=1, description="rounds of Sinkhorn's iteration")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="gamma falls to 0 at the end, or not")
    decay_from: float = Field(150.0, ge=0, description="epoch after which gamma falls")
    features: Literal["last_stage", "logits"] = Field(
        "last_stage", description="what classes are compared by: positions of the teacher's last stage, or logits"
    )


@register
class WKDL(Method[Settings]):
    """Moves the student's probabilities to the teacher's, at a cost that is small between classes alike."""

    card = Card(
        name="wkd_l",
        version=1,
        family="logit",
        title="WKD-L",
        paper="lv2024wkd",
        formula=(
            "L = ce * CE(z_s, y) + weight * [-p_t[y] log p_s[y] + gamma(epoch) * OT(q_s, q_t)], q = softmax at T over"
            " the classes other than y, OT by Sinkhorn's iteration at cost 1 - exp(-sharpness * (1 - CKA))"
        ),
        source="JiamingLv/WKD configs/cifar100/wkd_l/res32x4_res8x4.yaml (1, 600, T 8, 150; 0.05, 10 rounds) @214cf88",
        optimum="not identity: the target term pulls the label's logit up, and the entropic plan is not the identity's",
        hard_labels="that transport leaves out",
        divergences=(
            "the authors run the networks in fp16 and with Nesterov momentum; the recipe here is in fp32 and without",
            "the distances pair the images of two classes in the order of the training set (the authors: on ImageNet in"
            " a shuffled one), and are computed from the teacher at hand, not from their files",
            "values are published for two pairs of CIFAR-100; the others get those of resnet32x4 to resnet8x4",
        ),
        our_choice=("gamma", "temperature"),
    )
    needs = Needs(teacher=("logits",))

    cost: Tensor

    def setup(self) -> None:
        self.register_buffer("cost", 1 - torch.eye(self.info.num_classes), persistent=False)

    def prepare(self, teacher_pass: TeacherPass) -> None:
        unit = self.teacher.layout.stages[-1] if self.settings.features == "last_stage" else None
        distances = class_distances(teacher_pass, len(self.cost), unit)
        self.cost.copy_(1 - torch.exp(-self.settings.sharpness * distances))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.wkd_l(
            student.logits,
            teacher.logits,
            batch.labels,
            self.cost,
            gamma=config.gamma * (progress.cosine(config.decay_from) if config.schedule == "cosine" else 1.0),
            temperature=config.temperature,
            regularization=config.regularization,
            iterations=config.iterations,
        )
        return Losses(task={"task": config.ce * batch.loss(student.logits)}, distill={"wkd": config.weight * term})
