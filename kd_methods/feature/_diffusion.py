"""What DiffKD (Huang et al. 2023) trains beside the student: a diffusion model of the teacher's features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional
from ..functional.feature import same_size


class DenoisingBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, narrower within, each with BN, ReLU between them, and a residual."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        mid = max(1, channels // reduction)
        self.body = nn.Sequential(
            nn.Conv2d(channels, mid, 1),
            nn.BatchNorm2d(mid),
            nn.ReLU(),
            nn.Conv2d(mid, mid, 3, padding=1),
            nn.BatchNorm2d(mid),
            nn.ReLU(),
            nn.Conv2d(mid, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def two_layers(channels: int, factor: int, last_norm: bool) -> list[nn.Module]:
    """1x1 convolutions to ``factor`` times as many channels and back, BN after the first and, if asked, the last."""
    wide = channels * factor
    back = nn.Conv2d(wide, channels, 1)
    layers = [nn.Conv2d(channels, wide, 1), nn.BatchNorm2d(wide), nn.ReLU(), back]
    return [*layers, nn.BatchNorm2d(channels)] if last_norm else layers


class NoisePredictor(nn.Module):
    """The noise of a feature (B, C, H, W) at a time, an integer or one per image."""

    def __init__(self, channels: int, spatial: bool) -> None:
        super().__init__()
        self.times = nn.Embedding(1280, channels)
        layers: list[nn.Module]
        if spatial:
            blocks = [DenoisingBottleneck(channels, 4), DenoisingBottleneck(channels, 4)]
            layers = [*blocks, nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)]
        else:
            layers = [*two_layers(channels, 4, last_norm=True), *two_layers(channels, 4, last_norm=False)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.body(x + self.times(time)[..., None, None])


class Denoising(nn.Module):
    """One place where DiffKD distils: the student's feature, taken for a noisy one of the teacher's, is denoised.

    Args:
        student, teacher: channels.
        latent: channels of the autoencoder's code of the teacher's feature; None leaves it as it is.
        spatial: whether the features are maps, or logits as maps of one position.
    """

    def __init__(self, student: int, teacher: int, latent: int | None, spatial: bool) -> None:
        super().__init__()
        width = latent or teacher
        self.encoder = nn.Sequential(nn.Conv2d(teacher, width, 1), nn.BatchNorm2d(width)) if latent else None
        self.decoder = nn.Conv2d(width, teacher, 1) if latent else None
        self.transform = nn.Conv2d(student, width, 1)
        self.predictor = NoisePredictor(width, spatial)
        layers = [DenoisingBottleneck(width, 8)] if spatial else two_layers(width, 2, last_norm=True)
        self.level = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))
        self.projection = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))

    def forward(self, student: Tensor, teacher: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of features (B, C, H, W) the refined student's and its target, and what trains the other parts, a scalar."""
        student, teacher = same_size(student, teacher)
        student = self.transform(student)
        target, coding = teacher, teacher.new_zeros(())
        if self.encoder is not None and self.decoder is not None:
            target = self.encoder(teacher)
            coding = functional.hint(self.decoder(target), teacher)
            target = target.detach()
        share = self.level(student).float().softmax(1)[:, :1, None, None]
        noisy = share * student + (1 - share) * torch.randn_like(student)
        refined = self.projection(functional.ddim(noisy, self.predictor, steps=steps))
        noise = torch.randn_like(target)
        times = torch.randint(1000, (len(target),), device=target.device)
        predicted = self.predictor(functional.diffuse(target, noise, times), times)
        return refined, target, coding + functional.hint(predicted, noise)
