"""Image classification from files: decoded and augmented by worker processes, while the device computes.

What an image becomes depends on the seed, the epoch and its place in the epoch alone, whichever worker decodes it and
however many there are; so training goes on in the middle of an epoch to the same bits.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from kd_methods.errors import DiskError, UserError

from ..common import machine
from ..common.seeding import derive, held_out
from ..config.protocol import Protocol
from ..config.recipe import Crops
from .image_files import picture
from .images import ImageBatch, Images, Normalisation, differing, noisy

EVAL_BATCH = 128
PREFETCH = 4
"""Batches that each worker is ahead."""

PATIENCE = 60
"""Seconds that a worker goes on after a SIGTERM."""


@dataclass(frozen=True)
class Files:
    """Images of one split: paths below ``root`` and labels (N,)."""

    root: Path
    paths: tuple[str, ...]
    labels: Tensor

    def subset(self, indices: Tensor) -> Files:
        """Those at some positions."""
        return Files(self.root, tuple(self.paths[i] for i in indices.tolist()), self.labels[indices])


@dataclass(eq=False)
class StreamTask:
    """A classification task over images in files.

    Args:
        name: how protocols and the command line call it.
        num_classes: number of classes.
        find: lists (train, test) below the data root; the second argument says whether it may unpack archives.
        official: numbers of training and test images; others are named in every table.
        version: raised when reading or augmentation is mended; part of every cell.
        size: height and width under the usual protocols.
        usual_protocol: under which teachers of it are verified; where it is the task's, they have its normalisation.
    """

    name: str
    num_classes: int
    find: Callable[[Path, bool], tuple[Files, Files]]
    official: tuple[int, int]
    version: int = 1
    metric: str = "top1"
    size: int = 224
    usual_protocol: str = "imagenet-100"
    _cache: dict[Path, tuple[Files, Files]] = field(default_factory=dict, init=False, repr=False)

    modality = "images"
    metrics = ("top1", "top5")
    official_fingerprint = ""
    """Not known: it depends on how the files were unpacked."""

    @property
    def official_samples(self) -> int:
        return self.official[0]

    def read(self, root: Path, unpack: bool = True) -> tuple[Files, Files]:
        """(train, test); listed once per process.

        Raises:
            UserError: no data; the message says where to put it.
        """
        if root not in self._cache:
            self._cache[root] = self.find(root, unpack)
        return self._cache[root]

    def fingerprint(self, root: Path, protocol: Protocol) -> str:
        """Digest of the names, sizes and labels of all files; their pixels would take hours to read.

        Raises:
            UserError: there is no file behind a name.
        """
        content = hashlib.sha256()
        for files in self.read(root):
            for path, label in zip(files.paths, files.labels.tolist(), strict=True):
                try:
                    size = (files.root / path).stat().st_size
                except OSError as error:  # a link to nowhere, no permission
                    raise UserError(
                        f"cannot read {files.root / path}: {error.strerror}; replace or remove it"
                    ) from None
                content.update(os.fsencode(f"{path}|{size}|{label}\n"))
        return content.hexdigest()

    def deviations(self, root: Path) -> tuple[str, ...]:
        return differing(self.name, self.official, tuple(len(files.labels) for files in self.read(root)))

    def samples(self, root: Path, download: bool = True) -> int:
        return len(self.read(root, unpack=download)[0].labels)

    def open(self, root: Path, protocol: Protocol, device: torch.device) -> StreamedImages:
        if protocol.crops is None or not protocol.mean:
            raise UserError(f"protocol {protocol.name} has no crops; images of task {self.name} have all sizes")
        if protocol.second_view:
            raise UserError(f"protocol {protocol.name} has two views of each image; task {self.name} gives one")
        return StreamedImages(*self.read(root), self.num_classes, protocol, protocol.crops, device)


@dataclass(frozen=True)
class ImageRequest:
    """An image by its position, and whether it is one of the test set; augmented by a batch's seed and its place there.

    Without a seed there is no augmentation.
    """

    index: int
    test: bool = False
    seed: int | None = None
    place: int = 0


@dataclass(frozen=True)
class _Requests:
    """Batches of requests, made when a worker is free for them."""

    count: int
    make: Callable[[int], list[ImageRequest]]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[ImageRequest]]:
        return map(self.make, range(self.count))


@dataclass(frozen=True)
class Failed:
    """What stopped a worker: a line for the user, or a traceback of ours."""

    text: str
    expected: bool


class Decoded(Dataset[tuple[Tensor, int]]):
    """Images in grey levels (H, W, C) with their labels, by :class:`ImageRequest`."""

    def __init__(self, train: Files, test: Files, flip: bool, crops: Crops, normalisation: Normalisation) -> None:
        self.splits = (train, test)
        from .augmentation.transforms import augmented, clean

        self.augmented, self.clean = augmented(crops, flip, *normalisation), clean(crops)

    def __getitem__(self, request: ImageRequest) -> tuple[Tensor, int]:
        files = self.splits[request.test]
        image = picture(files.root / files.paths[request.index], "replace it")
        if request.seed is None:
            pixels = self.clean(image)
        else:
            with drawing(derive(request.seed, request.place)):
                pixels = self.augmented(image)
        return pixels.permute(1, 2, 0).contiguous(), int(files.labels[request.index])

    def __getitems__(self, requests: list[ImageRequest]) -> list[tuple[Tensor, int]] | Failed:
        """A batch, as a worker hands it over; it raises nothing.

        torch keeps an error of a worker in a cycle with the workers' queues, and the collector that finds it closes
        the queues before it ends the workers through them.
        """
        try:
            return [self[request] for request in requests]
        except DiskError as error:
            return Failed(str(error), expected=True)
        except Exception:
            return Failed(traceback.format_exc(), expected=False)


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Inside, the random numbers of torch, numpy and Python are those of a seed; outside they are as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class StreamedImages(Images):
    """Images that are decoded when they are needed."""

    def __init__(
        self, train: Files, test: Files, num_classes: int, protocol: Protocol, crops: Crops, device: torch.device
    ) -> None:
        if protocol.holdout:
            train, test = (train.subset(indices) for indices in held_out(len(train.labels), protocol.holdout))
        labels = train.labels
        if protocol.label_noise:
            labels = noisy(labels, protocol.label_noise, num_classes)
            train = Files(train.root, train.paths, labels)
        shape = (3, crops.size, crops.size)
        super().__init__(labels, num_classes, len(test.labels), shape, protocol, device)
        self.workers = min(crops.workers, machine.cores())  # which changes nothing but the speed
        self.images = Decoded(train, test, protocol.flip, crops, self.normalisation)

    def batches(self, seed: int, epoch: int, start: int = 0) -> Iterator[ImageBatch]:
        order = list(self.order(seed, epoch, start))

        def wanted(number: int) -> list[ImageRequest]:
            step, chosen = order[number]
            batch_seed = derive(seed, "augmentation", epoch, step)
            return [ImageRequest(index, seed=batch_seed, place=place) for place, index in enumerate(chosen.tolist())]

        for (step, chosen), (images, _) in zip(order, self._fetched(len(order), wanted), strict=True):
            yield self.batch((seed, epoch, step), images, chosen.to(self.device))

    def clean(self, indices: Tensor, test: bool = False) -> ImageBatch:
        decoded = [self.images[ImageRequest(index, test)] for index in indices.tolist()]
        images, labels = torch.stack([image for image, _ in decoded]), torch.tensor([label for _, label in decoded])
        on_device = images.to(self.device), labels.to(self.device), indices.to(self.device)
        return ImageBatch(*on_device, self.seen)

    def cleaned(self, indices: Tensor, size: int) -> Iterator[ImageBatch]:
        return self._in_order(indices.split(size), lambda number: None)

    def augmented(self, seed: int, size: int) -> Iterator[ImageBatch]:
        batches = torch.arange(self.info.num_samples).split(size)
        return self._in_order(batches, lambda number: derive(seed, "augmented", number))

    def _in_order(self, batches: Sequence[Tensor], seed_of: Callable[[int], int | None]) -> Iterator[ImageBatch]:
        """Training images by position, in batches; each batch is augmented by its seed, where it has one."""

        def wanted(number: int) -> list[ImageRequest]:
            seed = seed_of(number)
            return [ImageRequest(index, seed=seed, place=place) for place, index in enumerate(batches[number].tolist())]

        for indices, (images, labels) in zip(batches, self._fetched(len(batches), wanted), strict=True):
            yield ImageBatch(images, labels, indices.to(self.device), self.seen)

    def tested(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = torch.arange(self.test_samples).split(EVAL_BATCH)
        return self._fetched(
            len(batches), lambda number: [ImageRequest(index, test=True) for index in batches[number].tolist()]
        )

    def _fetched(self, count: int, wanted: Callable[[int], list[ImageRequest]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in order, on the device; workers are ahead of them."""
        workers = min(self.workers, count)
        loader: Iterable[tuple[Tensor, Tensor]] = DataLoader(
            self.images,
            batch_sampler=_Requests(count, wanted),  # type: ignore[arg-type]
            collate_fn=_collated,
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            # Named, since a process that measures costs would else start each worker with an import of torch.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_quiet if workers else None,
        )
        for batch in loader:
            if isinstance(batch, Failed):
                raise DiskError(batch.text) if batch.expected else RuntimeError(f"a loader process:\n{batch.text}")
            images, labels = batch
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def _collated(decoded: list[tuple[Tensor, int]] | Failed) -> Any:
    return decoded if isinstance(decoded, Failed) else default_collate(decoded)


def _quiet(worker: int) -> None:
    """A worker leaves stopping to the process that it works for, and computes on one thread.

    Either signal may go to all processes at once. SIGTERM is also how Python ends workers at its own exit: so it is
    heeded, but after the time that the last steps may take.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(PATIENCE))
    torch.set_num_threads(1)
