"""Neuron selectivity transfer, Huang & Wang 2017."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, DataInfo, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..registry import register
from ._maps import matched


@register
class NST(Method):
    """Matches the distributions of the channels' spatial patterns."""

    card = Card(
        name="nst",
        version=1,
        family="feature",
        title="NST",
        paper="huang2017nst",
        formula="L = CE(z_s, y) + beta * sum_stages MMD^2({f_s,c / |f_s,c|}, {f_t,c / |f_t,c|}), kernel <a, b>^2",
        source="RepDistiller scripts/run_cifar_distill.sh (-b 50); mdistiller distillers/NST.py (all stages)",
        divergences=(
            "the paper matches one layer and weighs lambda / 2; the benchmarks and here all stages with beta",
            "networks with different numbers of stages are matched from the last stage backwards (the references fail)",
        ),
    )
    needs = Needs(student=("stages",), teacher=("stages",))

    class Settings(MethodSettings):
        beta: float = Field(50.0, ge=0, description="weight of the MMD term")

    settings: Settings

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__(student, teacher, info, settings)
        self.matched = len(matched("nst", student, self.teacher))

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        term = functional.nst(student.stages[-self.matched :], teacher.stages[-self.matched :])
        return Losses(task={"task": batch.loss(student.logits)}, distill={"selectivity": self.settings.beta * term})
