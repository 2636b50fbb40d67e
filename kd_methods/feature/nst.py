"""Neuron selectivity transfer, Huang & Wang 2017."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register
from ._maps import matched


class Settings(MethodSettings):
    beta: float = Field(50.0, ge=0, description="weight of the MMD term")


@register
class NST(Method[Settings]):
    """Matches the distributions of the channels' spatial patterns."""

    card = Card(
        name="nst",
        version=2,
        family="feature",
        title="NST",
        paper="huang2017nst",
        formula="L = CE(z_s, y) + beta * sum_stages MMD^2({f_s,c / |f_s,c|}, {f_t,c / |f_t,c|}), kernel <a, b>^2",
        source="RepDistiller scripts/run_cifar_distill.sh (-b 50); mdistiller distillers/NST.py (all stages)",
        divergences=(
            "the paper matches one layer and weighs lambda / 2; the benchmarks and here all stages with beta",
            "networks with different numbers of stages are matched from the first stage on, as in RepDistiller and the"
            " SimKD toolbox",
        ),
    )
    needs = Needs(student=("stages",), teacher=("stages",))

    def setup(self) -> None:
        self.matched = len(matched("nst", self.student, self.teacher, from_first=True))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        term = functional.nst(student.stages[: self.matched], teacher.stages[: self.matched])
        return Losses(task={"task": batch.loss(student.logits)}, distill={"selectivity": self.settings.beta * term})
