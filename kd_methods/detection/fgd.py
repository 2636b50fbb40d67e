"""Focal and global distillation, Yang et al. 2022."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register
from ._levels import aligned, channels


class ContextBlock(nn.Module):
    """A global context block: what all positions say together is added to each of them (GCNet, Cao et al. 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attend = nn.Conv2d(width, 1, 1)
        inner = nn.Conv2d(width, width // 2, 1), nn.LayerNorm([width // 2, 1, 1]), nn.ReLU()
        self.change = nn.Sequential(*inner, last := nn.Conv2d(width // 2, width, 1))
        nn.init.kaiming_normal_(self.attend.weight, mode="fan_in")
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        weights = self.attend(x).flatten(1).softmax(1)
        context = torch.einsum("bcp,bp->bc", x.flatten(2), weights)
        return x + self.change(context[:, :, None, None])


class Settings(MethodSettings):
    alpha: float = Field(5e-5, ge=0, description="weight of the objects")
    beta: float = Field(2.5e-5, ge=0, description="weight of the background")
    gamma: float = Field(5e-5, ge=0, description="weight of the attention maps")
    lambda_: float = Field(5e-7, ge=0, description="weight of the global relation")
    temperature: float = Field(0.5, gt=0, description="temperature of the attention")


@register
class FGD(Method[Settings]):
    """Matches objects and background apart, weighted by the teacher's attention, and the relations of all positions."""

    card = Card(
        name="fgd",
        version=2,
        family="feature",
        title="FGD",
        paper="yang2022fgd",
        formula=(
            "L = task + sum_levels [alpha * foreground + beta * background + gamma * |A_s - A_t|"
            " + lambda * |GC_s(F_s) - GC_t(F_t)|^2 / B]"
        ),
        source="authors' configs/distillers/fgd (two-stage detectors), mmdet/distillation/losses/fgd.py",
        optimum="where the aligned student pyramid equals the teacher's and both context blocks agree",
        divergences=(
            "the defaults are those of two-stage detectors; the authors' for one-stage ones are alpha 1e-3, beta 5e-4,"
            " gamma 5e-4, lambda 5e-6 (tables/published/settings.yaml)",
            "boxes are scaled by the padded image, which the map covers; the authors divide by the unpadded one",
            "of a two-stage detector the four levels are matched that its region heads read, as the authors do",
            "in the authors' published numbers the student begins with the teacher's neck and head where they fit (row"
            " setting init); their gradients are clipped at norm 35",
        ),
        modality="detection",
    )
    needs = Needs(student=("stages",), teacher=("stages",))

    def setup(self) -> None:
        widths = channels("fgd", self.student, self.teacher, convolved=True)
        self.align = nn.ModuleList(aligned(*pair) for pair in widths)
        self.own, self.theirs = (nn.ModuleList(ContextBlock(width) for _, width in widths) for _ in range(2))

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        weights = {"foreground": config.alpha, "background": config.beta, "attention": config.gamma}
        terms: dict[str, list[Tensor]] = {name: [] for name in (*weights, "relation")}
        image = (batch.inputs.shape[2], batch.inputs.shape[3])
        parts = self.align, self.own, self.theirs
        for align, own, theirs, s, t in zip(*parts, student.stages, teacher.stages, strict=False):
            s, t = align(s), t.detach()
            masks = functional.object_masks(batch.boxes, image, (s.shape[2], s.shape[3]))
            focal = functional.focal_features(s, t, *masks, temperature=config.temperature)
            for name, term in zip(weights, focal, strict=True):
                terms[name].append(weights[name] * term)
            relation = functional.hint(own(s), theirs(t), both=True) * (t.numel() / len(t))
            terms["relation"].append(config.lambda_ * relation)
        return Losses(
            task={"task": batch.loss(student.logits)},
            distill={name: torch.stack(values).sum() for name, values in terms.items()},
        )
