"""Localization distillation in all its parts, Zheng et al. 2022: as the authors' later code has it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..errors import UserError
from ..registry import register
from ._levels import IMAGES, channels, check_edges


class Settings(MethodSettings):
    main: float = Field(0.25, ge=0, description="weight of the edges at positive places")
    valuable: float = Field(0.25, ge=0, description="weight of the edges in the valuable region")
    temperature: float = Field(10.0, gt=0, description="temperature T of the softmaxes over an edge's bins")
    classes: float = Field(10.0, ge=0, description="weight of the class distributions at positive places")
    class_temperature: float = Field(2.0, gt=0, description="temperature of the softmaxes over classes")
    imitation: float = Field(2.0, ge=0, description="weight of the features near objects")


@register
class LDValuable(Method[Settings]):
    """Distils box edges at positive places and around them, classes at positive places, and features near objects."""

    card = Card(
        name="ld.vlr",
        version=2,
        family="logit",
        title="LD (valuable regions, KD, imitation)",
        paper="zheng2022ld",
        formula=(
            "L = task + 2 / B * (main * sum_p c_p LD_p + valuable / 4 * sum_v IoU_v LD_v)"
            " + classes * sum_levels mean_p KL_p"
            " + imitation * sum_levels mean (F_s - F_t)^2 near objects, LD = T^2 mean KL(edges_t / T || edges_s / T),"
            " c = the student's best class score, p positive places of B images, v those in the valuable region"
        ),
        source="HikariTJU/LD configs/ld/ld_r50_gflv1_r101_fpn_coco_1x.py, dense_heads/ld_head.py @258b2a1",
        optimum="where edges and classes agree, and the features near objects are the teacher's",
        divergences=(
            "the authors sum over the images of a GPU, two of them; 2 / B makes the weights independent of the batch",
            "features are compared in levels with a positive place only, as in the later code",
        ),
        waits="the places with an object, and in the valuable region, are counted",
        modality="detection",
    )
    needs = Needs(
        student=("stages",), teacher=("stages",), student_units=("dense", "anchor_relations"), teacher_units=("dense",)
    )

    def setup(self) -> None:
        check_edges("ld.vlr", self.student, self.teacher)
        if self.settings.imitation and any(s != t for s, t in channels("ld.vlr", self.student, self.teacher)):
            raise UserError("method 'ld.vlr' compares features as they are, and these pyramids differ in width:"
                            " set imitation to 0")  # fmt: skip

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        s, t, config = student["dense"], teacher["dense"], self.settings

        def edges(at: Tensor, weights: Tensor) -> Tensor:
            total = functional.localization(s.edges[at], t.edges[at], weights[at], temperature=config.temperature)
            return IMAGES / len(batch.boxes) * total

        at, relations = s.positive, student["anchor_relations"]
        distill = {
            "main": config.main * edges(at, s.classes.detach().sigmoid().amax(1)),
            "valuable": config.valuable / 4 * edges(relations.valuable > 0, relations.valuable),
            "classes": config.classes
            * functional.place_classes(s.classes[at], t.classes[at], s.level[at], temperature=config.class_temperature),
        }
        if config.imitation:
            distill["imitation"] = config.imitation * self._imitation(student, teacher)
        return Losses(task={"task": batch.loss(student.logits)}, distill=distill)

    def _imitation(self, student: Outputs, teacher: Outputs) -> Tensor:
        dense, relations, terms = student["dense"], student["anchor_relations"], [student.stages[0].sum() * 0]
        for level, maps in enumerate(zip(student.stages, teacher.stages, strict=True)):
            here = dense.level == level
            near = relations.near[here]
            if dense.positive[here].any() and near.any():
                x, y = (feature.permute(0, 2, 3, 1).flatten(0, 2)[near].float() for feature in maps)
                terms.append(F.mse_loss(x, y.detach()))
        return torch.stack(terms).sum()
