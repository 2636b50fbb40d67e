"""ViTKD, Yang et al. 2022: feature distillation between vision transformers."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..contract.patches import as_map
from ..errors import UserError
from ..registry import register

SHALLOW = 2
"""Number of first blocks that are mimicked."""


class Settings(MethodSettings):
    alpha: float = Field(3e-5, ge=0, description="weight of mimicking")
    beta: float = Field(3e-6, ge=0, description="weight of generation")
    masked: float = Field(0.5, gt=0, lt=1, description="share lambda of the patches that are masked")


@register
class ViTKD(Method[Settings]):
    """Mimics the first two blocks' patches, and generates those after the last one from half of the student's."""

    card = Card(
        name="vitkd",
        version=2,
        family="feature",
        title="ViTKD",
        paper="yang2022vitkd",
        formula=(
            "L = CE(z_s, y) + alpha / B * sum over blocks 1 and 2 ||W H_s - H_t||^2 + beta / (lambda B) * sum over"
            " masked patches ||G(mask(W H_s)) - H_t||^2 after the final norm, G = two 3x3 convolutions with a ReLU"
        ),
        source="yzd-v/cls_KD mmcls/models/dis_losses/vitkd.py (3e-5, 3e-6, 0.5), mmcls/models/backbones @1e5d48f",
        optimum="where the mapped student patches equal the teacher's; the generation has its own",
        divergences=(
            "the paper's main rows have NKD's term (gamma 1, T 1) beside it: vitkd+nkd",
            "of networks that average their tokens before the final norm, the last block's patches are matched",
        ),
        recipe="imagenet-ofa",
        batch="global",
    )
    needs = Needs(student=("stages",), teacher=("stages",))

    def setup(self) -> None:
        self.student_blocks, self.teacher_blocks = _blocks(self.student), _blocks(self.teacher)
        self.prefixes = [network.layout.prefix_tokens or 0 for network in (self.student, self.teacher)]
        shapes = self.student.shape(self.student_blocks[-1]), self.teacher.shape(self.teacher_blocks[-1])
        counts = [shape[0] - prefix for shape, prefix in zip(shapes, self.prefixes, strict=True)]
        if counts[0] != counts[1]:
            raise UserError(f"method 'vitkd' needs as many patches on both sides, here {counts[0]} and {counts[1]}")
        width, wide = shapes[0][1], shapes[1][1]
        self.maps = nn.ModuleList(
            nn.Identity() if width == wide else nn.Linear(width, wide) for _ in range(SHALLOW + 1)
        )
        self.mask_token = nn.Parameter(torch.zeros(wide))
        first, last = (nn.Conv2d(wide, wide, 3, padding=1) for _ in range(2))
        self.generation = nn.Sequential(first, nn.ReLU(), last)
        self.needs = replace(
            self.needs, student=(), teacher=(), student_units=self.student_blocks, teacher_units=self.teacher_blocks
        )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config, (student_prefix, teacher_prefix) = self.settings, self.prefixes
        mapped = [
            fit(student[unit][:, student_prefix:]) for fit, unit in zip(self.maps, self.student_blocks, strict=True)
        ]
        targets = [teacher[unit][:, teacher_prefix:] for unit in self.teacher_blocks]
        mimicked = torch.stack([functional.squared_distance(*pair) for pair in zip(mapped, targets, strict=True)][:-1])
        generated, masked = self._generated(mapped[-1])
        missed = functional.squared_distance(generated * masked, targets[-1] * masked)
        return Losses(
            task={"task": batch.loss(student.logits)},
            distill={
                "mimicking": config.alpha * mimicked.sum(),
                "generation": config.beta / config.masked * missed,
            },
        )

    def _generated(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, L, D) from those that are left, and which were masked (B, L, 1)."""
        count = patches.shape[1]
        visible = int(count * (1 - self.settings.masked))
        rank = torch.rand(patches.shape[:2], device=patches.device).argsort(1).argsort(1)
        masked = (rank >= visible).unsqueeze(2)
        left = torch.where(masked, self.mask_token.to(patches.dtype), patches)
        return self.generation(as_map(left, 0)).flatten(2).transpose(1, 2), masked


def _blocks(network: Network) -> tuple[str, ...]:
    """The units of a transformer's first blocks, and of its last one's patches after the final norm."""
    layout = network.layout
    blocks = [unit for unit in layout.layers[: layout.layers.index(layout.stages[-1]) + 1] if unit != layout.stem]
    few = layout.prefix_tokens is None or len(blocks) <= SHALLOW
    if few or any(len(network.shape(unit)) != 2 for unit in (*blocks, layout.last_map)):
        raise UserError("method 'vitkd' is for vision transformers with three blocks at least; use another pair")
    return (*blocks[:SHALLOW], layout.last_map)
