# ruff: noqa: RUF001
"""Names of networks as papers print them, by rule. Imports no torch."""

from __future__ import annotations

import re

_RULES = (
    (r"wrn_(\d+)_(\d+)", r"WRN-\1-\2"),
    (r"resnet(\d+)x(\d+)", r"ResNet-\1×\2"),
    (r"resnet(\d+)", r"ResNet-\1"),
    (r"vgg(\d+)_bn", r"VGG-\1-BN"),
    (r"vgg(\d+)", r"VGG-\1"),
    (r"mobilenet_?v(\d)x(\d)", r"MobileNet-V\1×\2"),
    (r"mobilenet_?v(\d)", r"MobileNet-V\1"),
    (r"shuffle(?:net)?_?v(\d)x([\d.]+)", r"ShuffleNet-V\1×\2"),
    (r"shuffle(?:net)?_?v(\d)", r"ShuffleNet-V\1"),
    (r"bert-base(?:-uncased|-cased)?", "BERT-base"),
    (r"bert-large(?:-uncased|-cased)?", "BERT-large"),
    (r"electra-base-discriminator", "ELECTRA-base"),
    *((rf"{name}_{size}(?:_patch16_224)?", f"{title}-{size[0].upper()}")
      for name, title in (("convnext", "ConvNeXt"), ("deit", "DeiT"), ("vit", "ViT"), ("swin", "Swin"))
      for size in ("tiny", "small", "base", "large")),
)  # fmt: skip
"""What a name begins with, in letters of any case, and what is printed for that."""


def network_title(name: str) -> str:
    """WRN-40-2 for wrn_40_2, ResNet-8×4 for resnet8x4; what follows a known name stands in parentheses.

    A name that no rule knows stays as it is.
    """
    bare = re.sub(r"@\d+$", "", re.sub(r"^(timm|torchvision|hf):", "", name)).rpartition("/")[2]
    for pattern, title in _RULES:
        match = re.match(pattern + r"(?=$|[_.\[])", bare, re.IGNORECASE)
        if match:
            rest = re.sub(r"^\[(?:first|last|spread)(\d+)\]$", r"\1 layers", bare[match.end() :]).strip("_.[] ")
            return match.expand(title) + (f" ({rest})" if rest else "")
    return bare
