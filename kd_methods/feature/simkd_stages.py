"""SimKD as feature-only KD's paper compares with it: four layers, and cross-entropy and KD beside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from .. import functional
from ..contract import Batch, Card, Losses, MethodSettings, Needs, Outputs, Progress
from ..errors import UserError
from ..functional.feature import same_size
from ..registry import register
from ._connectors import three_layers
from .feature_only import LAYERS
from .simkd import PROJECTED, SimKD


class SimKDStagesSettings(MethodSettings):
    beta: float = Field(1.0, ge=0, description="weight of the feature term")
    kd: float = Field(1.0, ge=0, description="weight of the KD term (T^2 included)")
    temperature: float = Field(4.0, gt=0, description="temperature of the KD term")
    legacy: tuple[Literal["block", "statistics"], ...] = Field((), description="mistakes of the public code to repeat")


@register
class SimKDStages(SimKD):
    """SimKD with the ends of earlier stages matched as well, and labels and teacher's logits as further targets."""

    card = Card(
        name="simkd.stages",
        version=2,
        family="feature",
        title="SimKD (four layers)",
        paper="chen2022simkd",
        formula=(
            "L = CE(z_s, y) + kd * T^2 KL(p_t || p_s) + beta * mean_i MSE(P_i(f_s,i), f_t,i); f the ends of the"
            " stages; z_s by what follows the teacher's last stage, after its P"
        ),
        source="Thegolfingocto/KD_wo_CE @3abceed (SimKD), the comparison of arXiv 2511.14981",
        optimum="where the projected student maps equal the teacher's",
        divergences=(
            "the public code runs the teacher's last block once more on the projected map, and tests with the batch's"
            " statistics in the last projector; here only with setting legacy (block, statistics)",
            "the teacher's end is frozen: the public code means to train it, and does not hand it to the optimiser",
        ),
        recipe="cifar100-feature-only",
    )
    needs = Needs(student=("stages",), teacher=("stages", "logits"), min_batch=2)

    Settings = SimKDStagesSettings
    settings: SimKDStagesSettings  # type: ignore[assignment]

    def setup(self) -> None:
        super().setup()
        student_stages, teacher_stages = self.student.layout.stages, self.teacher.layout.stages
        count = min(LAYERS, len(student_stages), len(teacher_stages))
        self.earlier_units = tuple(zip(student_stages[-count:-1], teacher_stages[-count:-1], strict=True))
        shapes = [(self.student.shape(s), self.teacher.shape(t)) for s, t in self.earlier_units]
        self.earlier = nn.ModuleList(self.make_projector(*pair) for pair in shapes)
        if "statistics" in self.settings.legacy:
            for norm in self.projector.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.track_running_stats = False
                    norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        student_units, teacher_units = (tuple(pair[i] for pair in self.earlier_units) for i in (0, 1))
        self.needs = self.needs.joined(
            Needs(teacher=("logits",), student_units=student_units, teacher_units=teacher_units)
        )

    def ends(self) -> tuple[str, str]:
        return self.student.layout.stages[-1], self.teacher.layout.stages[-1]

    def layers(self, c_in: int, c_out: int, tokens: bool) -> Iterable[nn.Module]:
        return three_layers(c_in, c_out, tokens)

    def entry(self) -> str:
        return self._before_last_block() if "block" in self.settings.legacy else self.teacher_unit

    def _before_last_block(self) -> str:
        """The unit from which the teacher's last matched layer runs again.

        In the public code a layer is a block; one convolution is none, there it is the ReLU that follows.
        """
        teacher, unit = self.teacher, self.teacher_unit
        before = teacher.layout.layers[teacher.layout.layers.index(unit) - 1]
        if teacher.shape(before) != teacher.shape(unit):
            raise UserError(
                f"setting {self.card.name}.legacy=block: the teacher's last block gives another shape than it takes, "
                f"it cannot run twice; leave the setting out for this pair"
            )
        weighted = [m for m in teacher.module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        called: list[nn.Module] = []
        hooks = [m.register_forward_hook(lambda m, *_: called.append(m)) for m in weighted]
        with torch.no_grad():
            entry = torch.zeros(2, *teacher.shape(before)).to(next(teacher.module.parameters()))
            teacher.resume(before, entry, until=unit)
        for hook in hooks:
            hook.remove()
        if len(called) > 1:
            return before
        if teacher.layout.preacts[-1] == unit:
            raise UserError(
                f"setting {self.card.name}.legacy=block: the teacher's last layer is no block and no ReLU of its own, "
                f"nothing would run twice; leave the setting out for this pair"
            )
        return teacher.layout.preacts[-1]

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        matched = [
            (project(student[s]), teacher[t]) for project, (s, t) in zip(self.earlier, self.earlier_units, strict=True)
        ]
        matched.append((student[PROJECTED], teacher[self.teacher_unit]))
        terms = [functional.hint(*same_size(s, t)) for s, t in matched]
        kd = functional.kd(student.logits, teacher.logits, temperature=config.temperature)
        return Losses(
            task={"task": batch.loss(student.logits)},
            distill={"feature": config.beta * torch.stack(terms).mean(), "kd": config.kd * kd},
        )
