"""Teacher-free distillation, Yuan et al. 2020: a virtual teacher made of the labels."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, MethodSettings, Outputs, Progress, TeacherlessMethod
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(0.9, ge=0, description="weight of the task loss")
    weight: float = Field(10.0, ge=0, description="weight of the divergence, the multiplier included")
    correct: float = Field(0.99, gt=0, lt=1, description="the virtual teacher's probability of the label")
    temperature: float = Field(20.0, gt=0, description="temperature T of the virtual teacher")


@register
class TfKDReg(TeacherlessMethod[Settings]):
    """KD from a virtual teacher that is nearly sure of the label and knows nothing of the other classes."""

    card = Card(
        name="tf_kd.reg",
        version=1,
        family="logit",
        title="Tf-KD (reg)",
        paper="yuan2020tfkd",
        formula=(
            "L = ce * CE(z_s, y) + weight * 1 / (B K) * sum KL(softmax(u / T) || softmax(z_s)), u = correct at the"
            " label, (1 - correct) / (K - 1) elsewhere"
        ),
        source=(
            "yuanli2333/Teacher-free-Knowledge-Distillation experiments/base_experiments/base_resnet18/params.json"
            " (0.9; 0.1 times multiplier 100; T 20), my_loss_function.py (0.99) @d000ab3"
        ),
        optimum="the virtual teacher's probabilities, which are almost uniform",
        hard_labels="that the virtual teacher is sure of",
        divergences=(
            "weight, multiplier and T differ per network in the authors' configurations (share 0.1 to 0.95,"
            " multiplier 1 to 100, T 10 to 40); the default is ResNet18's",
            "KL is averaged over rows and classes, as in the code; the paper sums over classes",
            "the self-training form needs a teacher that is the student itself: method kd with such a pair",
        ),
        our_choice=("ce", "weight", "temperature"),
        modality="any",
        detectors=False,
    )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        term = functional.tf_kd_reg(
            student.logits, batch.labels, correct=config.correct, temperature=config.temperature
        )
        return Losses(task={"task": config.ce * batch.loss(student.logits)}, distill={"virtual": config.weight * term})
