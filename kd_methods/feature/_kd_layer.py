"""The KD layer of letKD (arXiv 2309.02843): local features match templates and are enriched by what they match."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional._precision import unit


class Match(nn.Module):
    """Scores of local features against templates: a scale times the cosine.

    Args:
        channels: C of the features.
        templates: number K of templates.
    """

    def __init__(self, channels: int, templates: int) -> None:
        super().__init__()
        self.templates = nn.Parameter(torch.randn(templates, channels) * math.sqrt(2 / channels))
        self.scale = nn.Parameter(torch.tensor(3.0))

    def scores(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, L, C) to (B, H, W, K) or (B, L, K), in fp32 under any autocast."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            return F.linear(unit(x), unit(self.templates) * self.scale)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features as they are, and their scores."""
        return x, self.scores(x)


class Assign(nn.Module):
    """Adds to local features the values of the templates that they match: x + alpha v, v = cosine(ReLU(BN(a)), V).

    Args:
        channels: C of the features.
        templates: number K of templates.
        alpha: mixing factor, a constant.
        normalise: the assignment is divided by its norm, as in the authors' code; the supplement argues for leaving it.
    """

    def __init__(self, channels: int, templates: int, alpha: float = 1.0, normalise: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(templates)
        self.values = nn.Parameter(torch.randn(channels, templates) * math.sqrt(2 / templates))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.alpha, self.normalise = alpha, normalise

    def forward(self, matched: tuple[Tensor, Tensor]) -> Tensor:
        """What :class:`Match` gave to features of the same shape; a location that matches nothing stays as it is."""
        x, scores = matched
        with torch.autocast(x.device.type, enabled=False):
            assigned = F.relu(self.norm(scores.flatten(0, -2)), inplace=True)
            # The product is linear in the assignment, so its norm divides the small result and not the large factor.
            values = F.linear(assigned, unit(self.values) * (self.alpha * self.scale))
            if self.normalise:
                norm = torch.linalg.vector_norm(assigned, dim=1, keepdim=True)
                values = values / norm.masked_fill(norm <= 1e-12, math.inf)
            values = values.unflatten(0, scores.shape[:-1])
            return x + (values.permute(0, 3, 1, 2) if x.dim() == 4 else values)
