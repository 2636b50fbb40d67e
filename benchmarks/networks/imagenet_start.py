"""Networks that begin with ImageNet weights of torchvision or timm, made to fit another size and other classes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_methods.errors import UserError

from . import external

LIBRARY_NAMES = {
    "ResNet34": "torchvision:resnet34",
    "ResNet34_64": "torchvision:resnet34",
    "vgg19_bn": "torchvision:vgg19_bn",
    "vit_b": "torchvision:vit_b_16",
    "vit_b_p8": "torchvision:vit_b_16",
}
"""The suite's own networks (arXiv 2511.14981 fine-tunes these weights) and the ones whose weights they take."""

_NAMES = (
    (r"^(layer\d\.\d+)\.downsample\.", r"\1.shortcut."),
    (r"^conv_proj\.", "vit.patch_embed.proj."),
    (r"^class_token$", "vit.cls_token"),
    (r"^encoder\.pos_embedding$", "vit.pos_embed"),
    (r"^encoder\.ln\.", "vit.norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"vit.blocks.\1."),
    (r"^(vit\.blocks\.\d+)\.ln_(\d)\.", r"\1.norm\2."),
    (r"^(vit\.blocks\.\d+)\.self_attention\.in_proj_", r"\1.attn.qkv."),
    (r"^(vit\.blocks\.\d+)\.self_attention\.out_proj\.", r"\1.attn.proj."),
    (r"^(vit\.blocks\.\d+)\.mlp\.(?:0|linear_1)\.", r"\1.mlp.fc1."),
    (r"^(vit\.blocks\.\d+)\.mlp\.(?:3|linear_2)\.", r"\1.mlp.fc2."),
)
"""torchvision's names, and what the suite's networks call the same."""


def source(name: str) -> str:
    """The network whose ImageNet weights ``name`` begins with.

    Raises:
        UserError: none is known.
    """
    if name not in LIBRARY_NAMES and not external.is_external(name):
        known = ", ".join(LIBRARY_NAMES)
        raise UserError(
            f"no ImageNet weights are known that network '{name}' could begin with; "
            f"they are for {known}, timm:NAME and torchvision:NAME"
        )
    return LIBRARY_NAMES.get(name) or name.partition("@")[0]


def begin(module: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Copy the weights that fit; returns what stays as it was, such as the classifier of other classes.

    Kernels of patches are average-pooled to the network's own, position embeddings resized between grids bilinearly;
    the class token's, which comes first, is kept (the public code of arXiv 2511.14981 takes it for the last).
    """
    state = module.state_dict()
    left = set(state)
    with torch.no_grad():
        for name, value in weights.items():
            for key in dict.fromkeys((name, _renamed(name))):
                if key not in state:
                    continue
                fitted = _fitted(key, value, state[key])
                if fitted is not None:
                    state[key].copy_(fitted)
                    left.discard(key)
    return sorted(left)


def _renamed(name: str) -> str:
    for pattern, suites_name in _NAMES:
        name = re.sub(pattern, suites_name, name)
    return name


def _fitted(key: str, value: Tensor, wanted: Tensor) -> Tensor | None:
    if value.shape == wanted.shape:
        return value
    if key.endswith("patch_embed.proj.weight") and value.shape[2] % wanted.shape[2] == 0:
        return F.adaptive_avg_pool2d(value, (wanted.shape[2], wanted.shape[3]))
    if key.endswith("pos_embed") and value.dim() == wanted.dim() == 3 and value.shape[2] == wanted.shape[2]:
        return _resized(value, wanted.shape[1])
    return None


def _resized(positions: Tensor, tokens: int) -> Tensor | None:
    """Position embeddings (1, 1 + n², D) or (1, n², D) for another number of tokens."""
    for prefix in (1, 0):
        sides = [math.isqrt(count - prefix) for count in (positions.shape[1], tokens)]
        if [side**2 + prefix for side in sides] == [positions.shape[1], tokens]:
            grid = positions[:, prefix:].transpose(1, 2).unflatten(2, (sides[0], sides[0]))
            grid = F.interpolate(grid, size=sides[1], mode="bilinear", align_corners=False)
            return torch.cat([positions[:, :prefix], grid.flatten(2).transpose(1, 2)], 1)
    return None
