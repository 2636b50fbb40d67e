"""Networks of torchvision and timm at CIFAR's resolution, as arXiv 2511.14981 has them: see :mod:`..libraries.resized`.

They are listed here and defined there, since a plan that names none of them need not wait for both libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..entry import family


def _later(name: str, **settings: Any) -> Callable[[int], nn.Module]:
    """Builds a class or function of :mod:`..libraries.resized`, which is imported then."""

    def build(num_classes: int) -> nn.Module:
        from ..libraries import resized

        return getattr(resized, name)(num_classes=num_classes, **settings)

    return build


NETWORKS = (
    *family(
        {
            "vgg11_bn": _later("VGGBN", depth=11),
            "vgg19_bn": _later("VGGBN", depth=19),
            "MobileNetV2x1": _later("MobileNetV2Full"),
            "MobileNetV2x1_64": _later("MobileNetV2Full", stride=2),
        },
        titles={"MobileNetV2x1_64": "MobileNet-V2×1"},  # noqa: RUF001
        sides={"MobileNetV2x1_64": 64},
    ),
    # Version 1 left the last block out of the blocks, version 2 started as timm's networks do.
    *family(
        {
            "vit_b": _later("vit_b"),
            "vit_ett": _later("vit_ett"),
            "vit_b_p8": _later("vit_b", patch=8),
            "vit_ett_p8": _later("vit_ett", patch=8),
        },
        version=3,
        titles={"vit_b": "ViT-B", "vit_ett": "ViT-ETT", "vit_b_p8": "ViT-B/8", "vit_ett_p8": "ViT-ETT/8"},
        sides={"vit_b_p8": 64, "vit_ett_p8": 64},
    ),
)
