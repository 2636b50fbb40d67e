"""Image classification with the whole data set on the device as uint8."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_methods.contract import Batch, DataInfo
from kd_methods.errors import UserError

from ..networks import NetworkView, build_network, check_inputs
from ..spec import Protocol, steps_per_epoch
from ..training.seeding import generator, held_out
from .randaugment import randaugment

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""(mean, std) per channel, in units of images scaled to [0, 1]."""

EVAL_BATCH = 500


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C) as uint8 and their labels (N,) as int64.

    Channels come last, so that a batch of images is a channels_last tensor without a copy.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageTask:
    """A classification task over a set of images that fits in memory.

    Args:
        name: how protocols and the command line call it.
        num_classes: number of classes.
        load: reads (train, test) from the data root; the second argument says whether it may download.
        version: raised when reading or augmentation is mended; part of every cell.
    """

    name: str
    num_classes: int
    load: Callable[[Path, bool], tuple[Split, Split]]
    version: int = 1
    metric: str = "top1"
    _cache: dict[Path, tuple[Split, Split, str]] = field(default_factory=dict, compare=False, repr=False)

    inputs = "images"

    def read(self, root: Path, download: bool = True) -> tuple[Split, Split, str]:
        """(train, test, fingerprint); read once per process.

        Raises:
            UserError: no data; the message says where to put it.
        """
        if root not in self._cache:
            train, test = self.load(root, download)
            content = hashlib.sha256()
            for part in (train.images, train.labels, test.images, test.labels):
                content.update(part.numpy().tobytes())
            self._cache[root] = (train, test, content.hexdigest())
        return self._cache[root]

    def fingerprint(self, root: Path, protocol: Protocol) -> str:
        return self.read(root)[2]

    def deviations(self, root: Path) -> tuple[str, ...]:
        return ()

    def samples(self, root: Path, download: bool = True) -> int:
        return len(self.read(root, download)[0].labels)

    def open(self, root: Path, protocol: Protocol, device: torch.device) -> ImageData:
        if protocol.max_length or not protocol.mean:
            raise UserError(f"protocol {protocol.name} is one for texts; task {self.name} is one of images")
        train, test, _ = self.read(root)
        return ImageData(train, test, self.num_classes, protocol, device)


class ImageBatch:
    """Augmented uint8 images (B, H, W, C) of one step; ``second`` draws their second view when it is asked for."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        normalisation: Normalisation,
        second: Callable[[], Tensor] | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.indices = indices
        self._views = {1: images}
        self._second = second
        self._inputs: dict[tuple[int, Normalisation], Tensor] = {}
        self._own = normalisation

    def student(self, views: int = 1) -> Batch:
        second = self.inputs(self._own, 2) if views > 1 else None
        return Batch(self.inputs(self._own), self.labels, self.indices, F.cross_entropy, second)

    def inputs(self, normalisation: Normalisation, view: int = 1) -> Tensor:
        if view not in self._views:
            if self._second is None:
                raise UserError("the protocol gives one view of each image; set its second_view")
            self._views[view] = self._second()
        if (view, normalisation) not in self._inputs:
            self._inputs[view, normalisation] = normalise(self._views[view], normalisation)
        return self._inputs[view, normalisation]


class ImageData:
    """See :class:`benchmarks.tasks.TaskData`."""

    def __init__(self, train: Split, test: Split, num_classes: int, protocol: Protocol, device: torch.device) -> None:
        if protocol.holdout:
            parts = held_out(len(train.labels), protocol.holdout)
            train, test = (Split(train.images[part], train.labels[part]) for part in parts)
        if protocol.label_noise:
            train = Split(train.images, noisy(train.labels, protocol.label_noise, num_classes))
        self.train = Split(train.images.to(device), train.labels.to(device))
        self.test = Split(test.images.to(device), test.labels.to(device))
        self.device = device
        self.protocol = protocol
        self.normalisation: Normalisation = (protocol.mean, protocol.std)
        self.info = DataInfo(len(train.labels), num_classes, train.labels)
        self.test_samples = len(test.labels)
        height, width, channels = train.images.shape[1:]
        self.input_shape = (channels, height, width)

    def build(self, network: str) -> NetworkView:
        check_inputs(network, self.protocol.task, "images")
        view = build_network(network, self.info.num_classes, self.input_shape)
        return view.to(self.device).to(memory_format=torch.channels_last)

    def batches(self, seed: int, epoch: int, start: int = 0) -> Iterator[ImageBatch]:
        size = self.protocol.batch_size
        order = torch.randperm(self.info.num_samples, generator=generator(seed, "order", epoch))
        for step in range(start, steps_per_epoch(self.info.num_samples + self.protocol.holdout, self.protocol)):
            chosen = order[step * size : (step + 1) * size]
            indices = chosen.to(self.device)
            second = partial(self._second_view, seed, epoch, step, chosen) if self.protocol.second_view else None
            draws = generator(seed, "augmentation", epoch, step)
            yield ImageBatch(
                self._cropped(chosen, draws), self.train.labels[indices], indices, self.normalisation, second
            )

    def clean(self, indices: Tensor, test: bool = False) -> ImageBatch:
        chosen, split = indices.to(self.device), self.test if test else self.train
        return ImageBatch(split.images[chosen], split.labels[chosen], chosen, self.normalisation)

    def _cropped(self, chosen: Tensor, draws: torch.Generator) -> Tensor:
        p = self.protocol
        return augment(self.train.images, chosen, draws, p.crop_padding, p.flip, p.crop_fill, p.one_crop_per_batch)

    def _second_view(self, seed: int, epoch: int, step: int, chosen: Tensor) -> Tensor:
        draws = generator(seed, "second view", epoch, step)
        return randaugment(self._cropped(chosen, draws), draws)

    def evaluate(
        self, predict: Callable[[Tensor], Mapping[str, Tensor]], normalisation: Normalisation | None = None
    ) -> dict[str, dict[str, float]]:
        hits: dict[str, Tensor] = {}
        k = min(5, self.info.num_classes)
        with torch.no_grad():
            for images, labels in zip(
                self.test.images.split(EVAL_BATCH), self.test.labels.split(EVAL_BATCH), strict=True
            ):
                for name, logits in predict(normalise(images, normalisation or self.normalisation)).items():
                    ranked = logits.topk(k, dim=1).indices == labels[:, None]
                    counts = torch.stack([ranked[:, 0].sum(), ranked.any(1).sum()])
                    hits[name] = hits.get(name, 0) + counts
        size = len(self.test.labels)
        percent = {name: [100 * count / size for count in counts.tolist()] for name, counts in hits.items()}
        return {name: {"top1": values[0], "top5": values[1]} for name, values in percent.items()}


def normalise(images: Tensor, normalisation: Normalisation) -> Tensor:
    """(B, H, W, C) uint8 to (B, C, H, W) float, channels_last: (x / 255 - mean) / std."""
    mean, std = (torch.tensor(values, device=images.device) for values in normalisation)
    return images.to(torch.float32).div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


def augment(
    images: Tensor,
    indices: Tensor,
    draws: torch.Generator,
    padding: int,
    flip: bool,
    fill: str = "zeros",
    one_for_all: bool = False,
) -> Tensor:
    """Random crop and horizontal flip per sample, in one gather on the images' device.

    Args:
        images: (N, H, W, C) uint8, the whole set.
        indices: (B,) which images, on the CPU.
        draws: source of the random numbers, on the CPU.
        padding: pixels of padding on each side before the crop back to (H, W); 0 for no crop.
        flip: mirror each image with probability 1/2.
        fill: ``zeros``, or ``reflect`` for the image mirrored at its border pixels.
        one_for_all: all images get the same crop and flip.
    """
    batch, (height, width) = len(indices), images.shape[1:3]
    drawn = 1 if one_for_all else batch
    y, x = torch.arange(height).expand(batch, -1), torch.arange(width).expand(batch, -1)
    if padding:
        shift = torch.randint(-padding, padding + 1, (2, drawn, 1), generator=draws)
        y, x = y + shift[0], x + shift[1]
    if flip:
        mirrored = torch.rand(drawn, 1, generator=draws) < 0.5
        x = torch.where(mirrored, x.flip(1), x)
    device = images.device
    indices, y, x = indices.to(device), y.to(device), x.to(device)
    if fill == "reflect":
        y, x = _reflected(y, height), _reflected(x, width)
    crops = images[indices[:, None, None], y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]]
    if padding and fill == "zeros":
        inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
        crops = crops * inside[..., None]
    return crops


def _reflected(position: Tensor, size: int) -> Tensor:
    """Positions outside 0 … size - 1 mirrored at the border, which is not repeated."""
    return size - 1 - (size - 1 - position.abs()).abs()


def noisy(labels: Tensor, share: float, num_classes: int) -> Tensor:
    """Labels (N,) of which a share, the same for every seed, is exchanged for another class, uniformly."""
    draws = generator(0, "label noise")
    changed = torch.randperm(len(labels), generator=draws)[: round(share * len(labels))]
    shift = torch.randint(1, num_classes, (len(changed),), generator=draws)
    labels = labels.clone()
    labels[changed] = (labels[changed] + shift) % num_classes
    return labels
