"""Distillation of activation boundaries, Heo et al. 2019."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Phase, Progress
from ..registry import register
from ._connectors import ConvReg
from ._maps import matched, require_signs


class Settings(MethodSettings):
    margin: float = Field(1.0, gt=0, description="margin of the hinge")
    epochs: float = Field(30.0, gt=0, description="epochs of the first phase")


@register
class AB(Method[Settings]):
    """First trains the student to switch its units on where the teacher's are on, then trains it as usual."""

    card = Card(
        name="ab",
        version=1,
        family="feature",
        title="AB",
        paper="heo2019ab",
        formula=(
            "first phase: sum_l 2^(l-L) * 3 / (1000 B) * sum max(0, margin - sign(F_t,l) * D(F_s,l))^2;"
            " then L = CE(z_s, y)"
        ),
        source="RepDistiller distiller_zoo/AB.py (margin 1), helper/pretrain.py, train_student.py (init_epochs 30)",
        optimum="in the first phase where every connected pre-activation has the teacher's sign beyond the margin",
        divergences=(
            "the authors train the second phase by KD (temperature 3), RepDistiller by CE; the default is CE, since the"
            " published CIFAR-100 table is RepDistiller's; ab+kd has both",
            "the final batch-norm of a WRN student learns in the first phase, as in the authors' code, which has the"
            " teacher in training mode, too; RepDistiller leaves it at its start, in evaluation mode",
            "connectors are RepDistiller's (none where shapes agree, else a convolution that settles the size and BN);"
            " the authors' are 1x1",
            "networks with different numbers of stages are matched from the last stage backwards (the references fail)",
        ),
    )
    needs = Needs()
    phase_needs = Needs(student=("preacts",), teacher=("preacts",), min_batch=2)

    def setup(self) -> None:
        require_signs("ab", self.student, self.teacher)
        self.connectors = nn.ModuleList(
            nn.Identity() if s == t else ConvReg(s, t, rectify=False)
            for s, t in matched("ab", self.student, self.teacher, "preacts")
        )

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("boundaries", self.settings.epochs, self._boundaries, self.phase_needs),)

    def _boundaries(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        n = len(self.connectors)
        connected = [connector(s) for connector, s in zip(self.connectors, student.preacts[-n:], strict=True)]
        term = functional.activation_boundary(connected, teacher.preacts[-n:], margin=self.settings.margin)
        return Losses(distill={"boundaries": term})

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        return Losses(task={"task": batch.loss(student.logits)})
