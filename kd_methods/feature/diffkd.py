"""Knowledge diffusion, Huang et al. 2023."""

from __future__ import annotations

from pydantic import Field

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register
from ._diffusion import Denoising
from ._maps import matched


class Settings(MethodSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    map: float = Field(1.0, ge=0, description="weight of the last map's terms")
    logits: float = Field(1.0, ge=0, description="weight of the logits' terms")
    temperature: float = Field(1.0, gt=0, description="temperature T of the logits' divergence")
    steps: int = Field(5, ge=1, le=500, description="steps of the denoising")
    latent: int | None = Field(None, ge=1, description="channels of the teacher's code; null for half its own")


@register
class DiffKD(Method[Settings]):
    """Denoises the student's last map and logits by a diffusion model of the teacher's, and matches what comes out."""

    card = Card(
        name="diffkd",
        version=1,
        family="feature",
        title="DiffKD",
        paper="huang2023diffkd",
        formula=(
            "L = ce * CE(z_s, y) + map * [MSE(R(F_s), h) + d(h) + MSE(dec(h), F_t)] + logits * [T^2 * KL(z_t || R(z_s))"
            " + d(z_t)], h = enc(F_t), R = projection of 5 DDIM steps from g x + (1 - g) noise, x = 1x1 convolution of"
            " the student's, d(h) = |predicted noise - noise|^2 of h at a random time"
        ),
        source="hunto/image_classification_sota lib/models/losses/diffkd, kd_loss.py,"
        " configs/strategies/distill/diffkd/diffkd_b1.yaml (1, 1, T 1, 5 steps) @6f7a70a",
        optimum="not identity: noise goes in",
        order="noise and times are drawn image by image",
        divergences=(
            "the authors' ImageNet configurations have 1024 latent channels for every teacher; the default here is half"
            " the teacher's, as their class has it where none are given; nothing is published for CIFAR-100",
            "where the maps' sizes differ, the larger one is average-pooled to the smaller one",
            "the diffusion model runs in full precision within the steps, whatever the networks compute in",
        ),
        our_choice=("latent",),
        batch="global",
    )
    needs = Needs(student=("last_map",), teacher=("last_map", "logits"), min_batch=2)

    def setup(self) -> None:
        (student_shape, teacher_shape), = matched("diffkd", self.student, self.teacher, "last_map")  # fmt: skip
        latent = self.settings.latent or max(1, teacher_shape[0] // 2)
        self.on_map = Denoising(student_shape[0], teacher_shape[0], latent, spatial=True)
        self.on_logits = Denoising(self.info.num_classes, self.info.num_classes, None, spatial=False)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        refined, target, learning = self.on_map(student.last_map, teacher.last_map, config.steps)
        of_map = functional.hint(refined, target) + learning
        places = (z[..., None, None] for z in (student.logits, teacher.logits))
        refined, target, learning = self.on_logits(*places, config.steps)
        kd = functional.kd(refined.flatten(1), target.flatten(1), temperature=config.temperature)
        return Losses(
            task={"task": config.ce * batch.loss(student.logits)},
            distill={"map": config.map * of_map, "logits": config.logits * (kd + learning)},
        )
