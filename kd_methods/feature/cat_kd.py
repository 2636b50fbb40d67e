"""Class attention transfer, Guo et al. 2023."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..errors import UserError
from ..registry import register
from ._maps import only_pools


class Settings(MethodSettings):
    beta: float = Field(1.5, ge=0, description="weight of the attention term")
    resolution: int = Field(2, ge=1, description="height and width of the compared maps")
    normalize: bool = Field(False, description="divide every map by its 2-norm")


@register
class CATKD(Method[Settings]):
    """Matches class activation maps."""

    card = Card(
        name="cat_kd",
        version=2,
        family="feature",
        title="CAT-KD",
        paper="guo2023catkd",
        formula="L = CE(z_s, y) + beta * MSE(n(pool(CAM_s)), n(pool(CAM_t))), CAM = class weights at every position",
        source="authors' mdistiller/distillers/CAT_KD.py, engine/cfg.py (resolution 2, normalised; weight 400)",
        optimum="where the class activation maps agree",
        divergences=(
            "the authors rewrite the networks with a 1x1 convolution as classifier; here the unchanged networks'"
            " classifier runs on the pooled positions, less its value at zero, which is the same without rewriting",
            "the student's own logits keep their bias here, which the authors' students do not have",
            "published by pair: weights 0.7 to 15 without normalisation (within a family), 15 to 600 with it (across"
            " families; ShuffleNets at resolution 4); the default is one of the former",
        ),
        our_choice=("beta", "normalize"),
    )
    needs = Needs(student=("last_map",), teacher=("last_map",))

    def setup(self) -> None:
        for network in (self.student, self.teacher):
            if not only_pools(network):
                raise UserError("method 'cat_kd' needs networks that only pool between their last map and classifier")

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        cams = self._cam(self.student, student.last_map), self._cam(self.teacher, teacher.last_map)
        term = functional.class_activation(*cams, resolution=config.resolution, normalize=config.normalize)
        return Losses(task={"task": batch.loss(student.logits)}, distill={"attention": config.beta * term})

    def _cam(self, network: Network, last_map: Tensor) -> Tensor:
        """Class activation maps (B, K, R, R) at the resolution compared."""
        pooled = F.adaptive_avg_pool2d(last_map, self.settings.resolution).permute(0, 2, 3, 1)
        flat = pooled.flatten(0, 2)
        logits = network.resume(network.layout.pooled, torch.cat([flat, torch.zeros_like(flat[:1])]))
        logits = logits[:-1] - logits[-1:]
        return logits.unflatten(0, pooled.shape[:3]).permute(0, 3, 1, 2)
