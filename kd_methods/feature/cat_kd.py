"""Class attention transfer, Guo et al. 2023."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from .. import functional
from ..contract import Batch, Card, DataInfo, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..errors import UserError
from ..registry import register


@register
class CATKD(Method):
    """Matches class activation maps."""

    card = Card(
        name="cat_kd",
        version=1,
        family="feature",
        title="CAT-KD",
        paper="guo2023catkd",
        formula="L = CE(z_s, y) + beta * MSE(n(pool(CAM_s)), n(pool(CAM_t))), CAM = classifier at every position",
        source="authors' mdistiller/distillers/CAT_KD.py (resolution 2, normalised); beta differs by pair",
        optimum="where the class activation maps agree",
        divergences=(
            "the authors rewrite the networks with a 1x1 convolution as classifier; here the classifier runs on the"
            " pooled positions of the unchanged networks, which is the same, since it is affine",
            "published weights run from 0.7 to 600 by pair; the default is one of the smaller ones",
        ),
        our_choice=("beta",),
    )
    needs = Needs(student=("last_map",), teacher=("last_map",))

    class Settings(MethodSettings):
        beta: float = Field(1.5, ge=0, description="weight of the attention term")
        resolution: int = Field(2, ge=1, description="height and width of the compared maps")
        normalize: bool = Field(True, description="divide every map by its 2-norm")

    settings: Settings

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__(student, teacher, info, settings)
        for network in (student, self.teacher):
            shape = network.shapes("last_map")[0]
            if len(shape) != 3 or network.shapes("pooled")[0] != shape[:1]:
                raise UserError("method 'cat_kd' needs networks that only pool between their last map and classifier")

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        assert teacher is not None
        config, ours = self.settings, self._networks[0]
        cams = self._cam(ours, student.last_map), self._cam(self.teacher, teacher.last_map)
        term = functional.class_activation(*cams, resolution=config.resolution, normalize=config.normalize)
        return Losses(task={"task": batch.loss(student.logits)}, distill={"attention": config.beta * term})

    def _cam(self, network: Network, last_map: Tensor) -> Tensor:
        """Class activation maps (B, K, R, R) at the resolution compared."""
        pooled = F.adaptive_avg_pool2d(last_map, self.settings.resolution).permute(0, 2, 3, 1)
        logits = network.resume(network.layout.pooled, pooled.flatten(0, 2))
        return logits.unflatten(0, pooled.shape[:3]).permute(0, 3, 1, 2)
