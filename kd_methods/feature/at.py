"""Attention transfer, Zagoruyko & Komodakis 2017."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, DataInfo, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..errors import UserError
from ..registry import register


@register
class AT(Method):
    """Matches where the stages' activations are large."""

    card = Card(
        name="at",
        version=1,
        family="feature",
        title="AT",
        paper="zagoruyko2017at",
        formula="L = CE(z_s, y) + beta * sum_stages mean((a(F_s) - a(F_t))^2), a = normalised mean_c |F|^p",
        source="RepDistiller scripts/run_cifar_distill.sh (-b 1000); mdistiller engine/cfg.py (p 2)",
        divergences=(
            "paper: beta / 2 times the difference's norm; authors' code and here: mean of its square, beta 1000",
            "networks with different numbers of stages are matched from the last stage backwards (the references fail)",
        ),
    )
    needs = Needs(student=("stages",), teacher=("stages",))

    class Settings(MethodSettings):
        beta: float = Field(1000.0, ge=0, description="weight of the attention term")
        p: int = Field(2, ge=1, description="power of the activations in the attention map")

    settings: Settings

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__(student, teacher, info, settings)
        shapes = student.shapes("stages"), self.teacher.shapes("stages")
        if any(len(shape) != 3 for shape in (*shapes[0], *shapes[1])):
            raise UserError("method 'at' needs stages that are maps (C, H, W); use another method for this pair")
        self.matched = min(map(len, shapes))

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        config, n = self.settings, self.matched
        term = functional.attention_transfer(student.stages[-n:], teacher.stages[-n:], p=config.p)
        return Losses(task={"task": batch.loss(student.logits)}, distill={"attention": config.beta * term})
