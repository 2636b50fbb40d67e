"""DIST, distillation from a stronger teacher, Huang et al. 2022."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    weight: float = Field(2.0, ge=0, description="weight of both correlation terms together")
    beta: float = Field(1.0, ge=0, description="weight of the correlation over classes, within a row")
    gamma: float = Field(1.0, ge=0, description="weight of the correlation over the batch, within a class")
    temperature: float = Field(4.0, gt=0, description="temperature T of both softmaxes")


@register
class DIST(Method[Settings]):
    """Matches class probabilities up to scale and shift: correlations within rows and within classes."""

    card = Card(
        name="dist",
        version=1,
        family="logit",
        title="DIST",
        paper="huang2022dist",
        formula=(
            "L = ce * CE(z_s, y) + weight * T^2 * [beta * (1 - mean_rows rho(p_s, p_t))"
            " + gamma * (1 - mean_classes rho(p_s, p_t))], rho = Pearson correlation"
        ),
        source="image_classification_sota lib/models/losses/dist_kd.py, configs/strategies/distill/dist_cifar.yaml",
        optimum="z_s = z_t, up to the 1e-8 that the reference code and we add to the correlations' denominators",
        divergences=(
            "the paper names temperature 1; the authors' CIFAR configuration, our default, has 4 and the factor T^2",
            "correlations over the batch are of one device's in the authors' code; here of all that processes share",
        ),
        modality="any",
        batch="global",
    )
    needs = Needs(teacher=("logits",), min_batch=2)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.dist(
            student.logits, teacher.logits, beta=config.beta, gamma=config.gamma, temperature=config.temperature
        )
        return Losses(task={"task": config.ce * batch.loss(student.logits)}, distill={"dist": config.weight * term})
