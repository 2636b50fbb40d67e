"""Diffusion of features: adding noise, and taking it away step by step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._precision import full_precision

LENGTH = 1000
"""Steps of the forward process."""


@full_precision
def diffuse(latent: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """sqrt(a_t) latent + sqrt(1 - a_t) noise: the forward process at time t.

    a_t is the product of 1 - beta up to t; beta grows linearly from 1e-4 to 0.02 over 1000 times.

    Args:
        latent, noise: (B, C, H, W).
        times: (B,) integers from 0 to 999.

    Returns:
        (B, C, H, W).

    Source: Huang et al. 2023 (DiffKD), equation 3, with the schedule of hunto/image_classification_sota
    ``lib/models/losses/diffkd`` @6f7a70a.
    """
    a = _signal_left(latent)[times].view(-1, *[1] * (latent.dim() - 1))
    return a.sqrt() * latent + (1 - a).sqrt() * noise


@full_precision
def ddim(noisy: Tensor, predictor: Callable[[Tensor, Tensor], Tensor], *, steps: int = 5) -> Tensor:
    """A feature denoised by deterministic steps at times (steps - 1) w, ..., w, 0, with w = 1000 // (2 steps).

    A step predicts the noise e, from it x_0 = (x - sqrt(1 - a_t) e) / sqrt(a_t), and goes to the time before with
    sqrt(a) x_0 + sqrt(1 - a) e; a beyond time 0 is 1.

    Args:
        noisy: (B, C, H, W).
        predictor: the noise of x (B, C, H, W) at an integer time, given as a scalar tensor.
        steps: number of steps.

    Returns:
        (B, C, H, W); the gradient runs through all steps.

    Source: Song et al. 2021 with eta 0, as DiffKD uses it (Huang et al. 2023), hunto/image_classification_sota
    ``lib/models/losses/diffkd`` @6f7a70a.
    """
    signal, width, x = _signal_left(noisy), LENGTH // (2 * steps), noisy
    for time in range((steps - 1) * width, -1, -width):
        a, before = signal[time], signal[time - width] if time >= width else signal.new_ones(())
        noise = predictor(x, torch.full((), time, device=x.device))
        clean = (x - (1 - a).sqrt() * noise) / a.sqrt()
        x = before.sqrt() * clean + (1 - before).sqrt() * noise
    return x


def _signal_left(like: Tensor) -> Tensor:
    """(1000,) the share of the signal's variance that is left at every time."""
    beta = torch.linspace(1e-4, 0.02, LENGTH, dtype=torch.float64, device=like.device)
    return (1 - beta).cumprod(0).to(like)
