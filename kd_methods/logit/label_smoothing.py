"""Label smoothing, Szegedy et al. 2016: what soft targets do without a teacher."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ..contract import Batch, Card, Losses, MethodSettings, Outputs, Progress, TeacherlessMethod
from ..functional._precision import full_precision
from ..registry import register


class Settings(MethodSettings):
    smoothing: float = Field(0.1, ge=0, lt=1, description="share of a label that is spread over all classes")


@register
class LabelSmoothing(TeacherlessMethod[Settings]):
    """The student alone, a share of every label spread over all classes."""

    card = Card(
        name="label_smoothing",
        version=1,
        family="logit",
        title="Label smoothing (no KD)",
        paper="szegedy2016inception",
        formula="L = (1 - smoothing) * CE(z_s, y) - smoothing * mean_k log p_s[k]",
        source="Szegedy et al. 2016, section 7 (0.1), there for ImageNet",
        optimum=None,
        divergences=(
            "torch's label_smoothing with the same value; Tf-KD's code spreads its share over the other classes only,"
            " which is K / (K - 1) of it",
            "comes on top of a recipe's own smoothing, where it has one",
            "the spread share is that of a softmax, also where a recipe's task loss is binary cross-entropy: what"
            " smooths that one is the recipe's own label_smoothing",
        ),
        modality="any",
        detectors=False,
    )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        share = self.settings.smoothing
        return Losses(task={"task": (1 - share) * batch.loss(student.logits) + share * _uniform(student.logits)})


@full_precision
def _uniform(logits: Tensor) -> Tensor:
    """Cross-entropy of the uniform distribution and the softmax, mean over rows."""
    return -logits.log_softmax(1).mean()
