"""Block-wise logit distillation with stones inside a detector's backbone, Yu et al. 2024 (arXiv 2411.01547)."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..blockwise._stones import active_stones
from ..contract import (
    Batch,
    Card,
    DenseHeads,
    Heads,
    Losses,
    Method,
    MethodSettings,
    Needs,
    Outputs,
    Progress,
    Pyramid,
)
from ..errors import UserError
from ..registry import register


class Settings(MethodSettings):
    alpha: float = Field(1.0, ge=0, description="weight of the task losses of student and stones")
    beta: float = Field(1.0, ge=0, description="weight of the distances to the teacher")
    gamma: float = Field(1.0, ge=0, description="weight of the distances to the stones' ensemble")
    stone_task: float = Field(1.0, ge=0, description="factor on the stones' task losses")
    temperature: float = Field(1.0, gt=0, description="temperature of all distances")
    active_stones: tuple[int, ...] | None = Field(
        None, description="stones in use, from 1, or from the end if negative; null for all"
    )


@register
class BackboneBlockKD(Method[Settings]):
    """Trains the student's backbone through the remaining stages of the teacher's, its pyramid and region heads."""

    card = Card(
        name="block_kd.backbone",
        version=1,
        family="blockwise",
        title="Block-KD (backbone)",
        paper="yu2024blockkd",
        formula=(
            "L = alpha * [task + sum_i w_i task(N_i)] + beta * [d(S, T) + sum_i w_i d(N_i, T)]"
            " + gamma * [d(S, E) + sum_i w_i d(N_i, E)], N_i = the student's stages 1..i, each through its connector,"
            " the teacher's stages after i, and the teacher's neck and heads on both; E = mean_i N_i,"
            " w_i = 1 / 2^(n-i), d = KL of the regions' classes"
        ),
        source="arXiv 2411.01547 for the losses; that COCO is used is all that is known of detection",
        optimum="where the student and all stepping stones give the teacher's region logits",
        divergences=(
            "everything but the losses is our reading: a stage of the backbone is a block, what the neck reads of the"
            " stages that were replaced comes from their connectors (1x1 convolution and BN, ReLU where the teacher's"
            " stages end in one), the task loss of a stone is that of its regions (classes and boxes)",
            "block_kd.fpn replaces backbone and pyramid at once, by one stone behind both",
        ),
        our_choice=("alpha", "beta", "gamma", "stone_task", "temperature", "active_stones"),
        waits="the heads' regions are sorted by level, as in mmdetection",
        modality="detection",
    )
    needs = Needs(student_units=("pyramid",), teacher=("logits",), min_batch=2)

    def setup(self) -> None:
        student, teacher = self.student.layout.trunk, self.teacher.layout.trunk
        pairs = [(self.student.shape(s), self.teacher.shape(t)) for s, t in zip(student, teacher, strict=False)]
        if len(student) != len(teacher) or any(s[1:] != t[1:] for s, t in pairs):
            raise UserError(
                f"method '{self.card.name}' needs backbones whose stages have the same strides, here "
                f"{len(student)} and {len(teacher)} stages"
            )
        self.active = active_stones(self.card.name, self.settings.active_stones, len(pairs), least=1)
        self.weights = [0.5 ** (len(pairs) - i) for i in range(1, len(pairs) + 1)]
        self.connectors = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(s, t, 1, bias=False),
                nn.BatchNorm2d(t),
                *([nn.ReLU()] if unit in self.teacher.layout.rectified else []),
            )
            for ((s, *_), (t, *_)), unit in zip(pairs[: max(self.active)], teacher, strict=False)
        )
        self.needs = replace(self.needs, student_units=(*self.needs.student_units, *student))

    def stones(self, student: Outputs) -> list[Heads | DenseHeads]:
        """What the teacher's heads say of every active stone, at the regions or places of the student."""
        layout = self.student.layout
        pairs = zip(self.connectors, layout.trunk, strict=False)
        connected = [connect(student[unit]) for connect, unit in pairs]
        units, regions = self.teacher.layout.trunk, student["pyramid"].regions
        return [self.teacher.resume(units[i - 1], Pyramid(tuple(connected[:i]), regions)) for i in self.active]

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        stones = self.stones(student)
        (classes, target), logits = self._read(student, teacher), [self._classes(stone) for stone in stones]
        ensemble = torch.stack(logits).mean(0).detach()
        weights = [self.weights[i - 1] for i in self.active]

        def summed(terms: list[Tensor]) -> Tensor:
            return torch.stack([w * term for w, term in zip(weights, terms, strict=True)]).sum()

        return Losses(
            task={
                "task": config.alpha * batch.loss(student.logits),
                "stones_task": config.alpha * config.stone_task * summed([batch.loss(stone) for stone in stones]),
            },
            distill={
                "kd": config.beta * self._distance(classes, target),
                "stones_kd": config.beta * summed([self._distance(z, target) for z in logits]),
                "cross": config.gamma * self._distance(classes, ensemble),
                "stones_cross": config.gamma * summed([self._distance(z, ensemble) for z in logits]),
            },
        )

    def _read(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Class logits of student and teacher."""
        return student.logits, teacher.logits

    def _classes(self, heads: Heads | DenseHeads) -> Tensor:
        assert isinstance(heads, Heads)
        return heads.logits

    def _distance(self, learner: Tensor, target: Tensor) -> Tensor:
        return functional.kd(learner, target, temperature=self.settings.temperature)


@register
class DenseBlockKD(BackboneBlockKD):
    """As Block-KD inside the backbone, for one-stage detectors: the stones end in the teacher's dense heads."""

    card = replace(
        BackboneBlockKD.card,
        name="block_kd.dense",
        title="Block-KD (dense)",
        formula=BackboneBlockKD.card.formula.replace(
            "d = KL of the regions' classes",
            "d(a, b) = sum over places and classes BCE(p_a, p_b) |p_a - p_b| over sum over places of the largest p_b,"
            " p = sigmoid(. / T)",
        ),
        optimum="where the student and all stepping stones give the teacher's class logits at every place",
        divergences=(
            "everything but the losses is our reading, as in block_kd.backbone; the distance between sigmoids is that"
            " of CrossKD's classes, over the teacher's confidence instead of the number of positive places",
            "a stone's task loss is the detector's own on the teacher's heads, boxes included",
        ),
        waits="",
    )
    needs = Needs(student_units=("pyramid", "heads"), teacher_units=("heads",), min_batch=2)

    def setup(self) -> None:
        try:
            shapes = {network.shape("heads") for network in (self.student, self.teacher)}
        except UserError:
            raise UserError(f"method '{self.card.name}' needs one-stage detectors; use block_kd.backbone") from None
        if len(shapes) > 1:
            raise UserError(f"method '{self.card.name}' needs two detectors with equally many anchors at a place")
        super().setup()

    def _read(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        return self._classes(student["heads"]), self._classes(teacher["heads"])

    def _classes(self, heads: Heads | DenseHeads) -> Tensor:
        """(P, K) class logits of all places."""
        assert isinstance(heads, DenseHeads)
        classes = self.student.shape("heads")[1]
        return torch.cat([scores.permute(0, 2, 3, 1).reshape(-1, classes) for scores in heads.scores])

    def _distance(self, learner: Tensor, target: Tensor) -> Tensor:
        learner, target = learner / self.settings.temperature, target.detach() / self.settings.temperature
        confidence = target.sigmoid().amax(1).sum().clamp(min=1)
        return functional.quality_focal(learner, target, target.new_ones(len(target)), positives=confidence)
