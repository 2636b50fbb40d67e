"""Tokens of vision transformers as maps of their patches, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Shape = tuple[int, ...]


def map_shape(tokens: Shape, prefix: int) -> Shape:
    """(D, H, W) of the map that tokens (L, D) are, of which the first ``prefix`` stand for no patch."""
    side = math.isqrt(tokens[0] - prefix)
    return tokens[1], side, side


def as_map(tokens: Tensor, prefix: int) -> Tensor:
    """(B, L, D) to (B, D, H, W), without the prefix; no copy."""
    side = math.isqrt(tokens.shape[1] - prefix)
    return tokens[:, prefix:].unflatten(1, (side, side)).permute(0, 3, 1, 2)


def as_tokens(maps: Tensor, prefix: int) -> Tensor:
    """(B, D, H, W) to (B, prefix + H W, D); each token of the prefix is the mean of the others (our choice)."""
    tokens = maps.flatten(2).transpose(1, 2)
    if not prefix:
        return tokens
    return torch.cat([tokens.mean(1, keepdim=True).expand(-1, prefix, -1), tokens], 1)
