"""SimKD as feature-only KD's paper compares with it: four layers, and cross-entropy and KD beside."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from .. import functional
from ..adapters import three_layers
from ..contract import Batch, Card, DataInfo, Losses, MethodSettings, Needs, Network, Outputs, Progress
from ..functional.feature import same_size
from ..registry import register
from ._maps import matched
from .feature_only import LAYERS
from .simkd import Projector, SimKD


@register
class SimKDStages(SimKD):
    """SimKD with the ends of earlier stages matched as well, and labels and teacher's logits as further targets."""

    card = Card(
        name="simkd.stages",
        version=1,
        family="feature",
        title="SimKD (four layers)",
        paper="chen2022simkd",
        formula=(
            "L = CE(z_s, y) + kd * T^2 KL(p_t || p_s) + beta * mean_i MSE(P_i(f_s,i), f_t,i); f the ends of the"
            " stages before the last, and the last map; z_s by the teacher's classifier after its P"
        ),
        source="Thegolfingocto/KD_wo_CE @3abceed (SimKD), the comparison of arXiv 2511.14981",
        optimum="where the projected student maps equal the teacher's",
        divergences=(
            "the public code runs the teacher's last block once more on the projected map, and tests with the batch's"
            " statistics in the projector; here neither",
            "the teacher's classifier is frozen: the public code means to train it, and does not hand it to the"
            " optimiser",
            "teachers with more than pooling and one linear layer after the last map are refused",
        ),
        recipe="cifar100-feature-only",
    )
    needs = Needs(student=("stages", "last_map"), teacher=("stages", "last_map", "logits"), min_batch=2)

    class Settings(MethodSettings):
        beta: float = Field(1.0, ge=0, description="weight of the feature term")
        kd: float = Field(1.0, ge=0, description="weight of the KD term (T^2 included)")
        temperature: float = Field(4.0, gt=0, description="temperature of the KD term")

    settings: Settings  # type: ignore[assignment]

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__(student, teacher, info, settings)
        earlier = matched(self.card.name, student, self.teacher)[-LAYERS:-1]
        self.earlier = nn.ModuleList(self.make_projector(*shapes) for shapes in earlier)

    def make_projector(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> Projector:
        return Projector(teacher_shape, three_layers(student_shape[0], teacher_shape[0]))

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        config, count = self.settings, len(self.earlier) + 1
        pairs = zip(self.earlier, student.stages[-count:-1], teacher.stages[-count:-1], strict=True)
        terms = [functional.hint(*same_size(project(s), t)) for project, s, t in pairs]
        terms.append(functional.hint(*same_size(student.last_map, teacher.last_map)))
        kd = functional.kd(student.logits, teacher.logits, temperature=config.temperature)
        return Losses(
            task={"task": batch.loss(student.logits)},
            distill={"feature": config.beta * torch.stack(terms).mean(), "kd": config.kd * kd},
        )
