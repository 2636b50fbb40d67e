"""Image classification with the whole data set on the device as uint8."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from kd_methods.contract import Batch, DataInfo, Outputs
from kd_methods.errors import UserError

from ..common.seeding import derive, generator, held_out
from ..config.protocol import Protocol
from ..networks import NetworkView, build_network, check_modality
from .answers import Answered, DrawnAnswers
from .augmentation.cropping import Augmentation, augment
from .augmentation.mixing import draw
from .augmentation.randaugment import randaugment
from .losses import LOSSES

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""(mean, std) per channel, in units of images scaled to [0, 1]."""

EVAL_BATCH = 500
CPU_EVAL_BATCH = 128
"""The outputs of larger ones leave a processor's caches: with 500, resnet20 takes 1.5 times as long."""


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C) as uint8 and their labels (N,) as int64.

    Channels come last, so that a batch of images is a channels_last tensor without a copy.
    """

    images: Tensor
    labels: Tensor


@dataclass(eq=False)
class ImageTask:
    """A classification task over a set of images that fits in memory.

    Args:
        name: how protocols and the command line call it.
        num_classes: number of classes.
        load: reads (train, test) from the data root; the second argument says whether it may download.
        version: raised when reading or augmentation is mended; part of every cell.
        size: height and width of the images.
        official: numbers of training and test images, where some are official; others are named in every table.
        official_fingerprint: the fingerprint of the official images and labels, where it is known.
        usual_protocol: under which teachers of it are verified; where it is the task's, they have its normalisation.
    """

    name: str
    num_classes: int
    load: Callable[[Path, bool], tuple[Split, Split]]
    version: int = 1
    metric: str = "top1"
    size: int = 32
    official: tuple[int, ...] = ()
    official_fingerprint: str = ""
    usual_protocol: str = "cifar100-crd240"
    _cache: dict[Path, tuple[Split, Split, str]] = field(default_factory=dict, init=False, repr=False)

    modality = "images"
    metrics = ("top1", "top5")

    @property
    def official_samples(self) -> int:
        return self.official[0] if self.official else 0

    def read(self, root: Path, download: bool = True) -> tuple[Split, Split, str]:
        """(train, test, fingerprint); read once per process.

        Raises:
            UserError: no data; the message says where to put it.
        """
        if root not in self._cache:
            train, test = self.load(root, download)
            content = hashlib.sha256()
            for tensor in (train.images, train.labels, test.images, test.labels):
                content.update(tensor.numpy().tobytes())
            self._cache[root] = (train, test, content.hexdigest())
        return self._cache[root]

    def fingerprint(self, root: Path, protocol: Protocol) -> str:
        return self.read(root)[2]

    def deviations(self, root: Path) -> tuple[str, ...]:
        return differing(self.name, self.official, tuple(len(split.labels) for split in self.read(root)[:2]))

    def samples(self, root: Path, download: bool = True) -> int:
        return len(self.read(root, download)[0].labels)

    def open(self, root: Path, protocol: Protocol, device: torch.device) -> ImageData:
        if protocol.max_length or not protocol.mean:
            raise UserError(f"protocol {protocol.name} is one for texts; task {self.name} is one of images")
        if protocol.crops:
            raise UserError(f"protocol {protocol.name} crops images of any size; those of task {self.name} have one")
        train, test, _ = self.read(root)
        return ImageData(train, test, self.num_classes, protocol, device)


@dataclass(frozen=True)
class Seen:
    """How students see images and their labels.

    normalisation  of the images
    loss           of logits (B, K) and labels (B,), or soft labels (B, K)
    """

    normalisation: Normalisation
    loss: Callable[[Tensor, Tensor], Tensor]

    @staticmethod
    def under(protocol: Protocol) -> Seen:
        """As a protocol has it."""
        return Seen((protocol.mean, protocol.std), partial(LOSSES[protocol.task_loss], protocol.label_smoothing))


class ImageBatch:
    """Augmented images (B, H, W, C) of one step; ``second`` draws their second view when it is asked for.

    They are grey levels as uint8, or as int16 where images have noise, which is not within 0 to 255.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        seen: Seen,
        second: Callable[[], Tensor] | None = None,
        soft_labels: Tensor | None = None,
    ) -> None:
        self.images, self.labels, self.indices = images, labels, indices
        self.seen, self.soft_labels = seen, soft_labels
        self._views = {1: images}
        self._second = second
        self._inputs: dict[tuple[int, Normalisation], Tensor] = {}
        self._answers: Answered | None = None

    def with_answers(self, answers: Answered | None) -> ImageBatch:
        """This batch, with what the teacher makes of its images where that is not their own answer."""
        self._answers = answers
        return self

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: slice) -> ImageBatch:
        second = (lambda: self._view(2)[rows]) if self._second else None
        pieces = self.images[rows], self.labels[rows], self.indices[rows]
        answers = self._answers and self._answers.part(rows)
        soft = None if self.soft_labels is None else self.soft_labels[rows]
        return ImageBatch(*pieces, self.seen, second, soft).with_answers(answers)

    def student(self, views: int = 1) -> Batch:
        normalisation = self.seen.normalisation
        second = self.inputs(normalisation, 2) if views > 1 else None
        answered = self._answers.given if self._answers else None
        batch = Batch(self.inputs(normalisation), self.labels, self.indices, self.seen.loss, second)
        return replace(batch, answered=answered, soft_labels=self.soft_labels)

    def inputs(self, normalisation: Normalisation, view: int = 1) -> Tensor:
        if (view, normalisation) not in self._inputs:
            self._inputs[view, normalisation] = normalise(self._view(view), normalisation)
        return self._inputs[view, normalisation]

    def as_taught(self) -> ImageBatch:
        return self._taught

    def answer(self, outputs: Outputs) -> Outputs:
        noise = self._answers.noise if self._answers else None
        if noise is None:
            return outputs
        spread = outputs.logits.std(1, keepdim=True)
        return outputs.with_other_logits(outputs.logits + (spread * noise).to(outputs.logits.dtype))

    @cached_property
    def _taught(self) -> ImageBatch:
        if self._answers is None or self._answers.images is None:
            return self
        return ImageBatch(self._answers.images, self.labels, self.indices, self.seen)

    def _view(self, view: int) -> Tensor:
        if view not in self._views:
            if self._second is None:
                raise UserError("the protocol gives one view of each image; set its second_view")
            self._views[view] = self._second()
        return self._views[view]


class Images:
    """What the data of all tasks of images have in common; see :class:`benchmarks.tasks.TaskData`.

    Args:
        labels: (N,) of the training images.
        num_classes: number of classes.
        test_samples: number of test images.
        input_shape: (C, H, W) of an image as networks see it.
        protocol: the recipe.
        device: where networks run.
    """

    def __init__(
        self,
        labels: Tensor,
        num_classes: int,
        test_samples: int,
        input_shape: tuple[int, ...],
        protocol: Protocol,
        device: torch.device,
    ) -> None:
        self.labels = labels.to(device)
        self.test_samples, self.input_shape = test_samples, input_shape
        self.protocol, self.device = protocol, device
        self.seen = Seen.under(protocol)
        self.normalisation = self.seen.normalisation
        wanted = protocol.teacher_answers
        self.answers = DrawnAnswers(len(labels), num_classes, wanted, device) if wanted else None
        taught = None if self.answered is None else int(self.answered.sum())
        self.info = DataInfo(len(labels), num_classes, labels, taught)

    @property
    def answered(self) -> Tensor | None:
        return self.answers.given if self.answers else None

    def build(self, network: str, trained: bool = False) -> NetworkView:
        check_modality(network, self.protocol.task, "images")
        drop_path = self.protocol.drop_path if trained else None
        view = build_network(network, self.info.num_classes, self.input_shape, drop_path=drop_path)
        return view.to(self.device).to(memory_format=torch.channels_last)

    def tested(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Test images (B, H, W, C) as uint8 and their labels (B,), on the device."""
        raise NotImplementedError

    def order(self, seed: int, epoch: int, start: int) -> Iterator[tuple[int, Tensor]]:
        """Steps of an epoch from ``start`` on, and the positions of their images in the training set."""
        size = self.protocol.batch_size
        order = torch.randperm(self.info.num_samples, generator=generator(seed, "order", epoch))
        if self.protocol.repeats > 1:
            order = order.repeat_interleave(self.protocol.repeats)[: self.info.num_samples]
        for step in range(start, self.protocol.steps_on(self.info.num_samples)):
            yield step, order[step * size : (step + 1) * size]

    def batch(
        self, place: tuple[int, int, int], images: Tensor, indices: Tensor, second: Callable[[], Tensor] | None = None
    ) -> ImageBatch:
        """The training batch at a place (seed, epoch, step) of augmented images, mixed where the protocol mixes."""
        labels, mixing = self.labels[indices], self.protocol.mixing
        if mixing is None:
            return ImageBatch(images, labels, indices, self.seen, second)
        mix = draw(mixing, (images.shape[1], images.shape[2]), derive(place[0], "mixing", *place[1:]))
        soft = mix.soft_labels(labels, self.info.num_classes, self.protocol.label_smoothing)
        views = mix.images(images), second and (lambda: mix.images(second()))
        return ImageBatch(views[0], mix.larger(labels), mix.larger(indices), self.seen, views[1], soft)

    def evaluate(
        self, predict: Callable[[Tensor], Mapping[str, Tensor]], normalisation: Normalisation | None = None
    ) -> dict[str, dict[str, float]]:
        hits: dict[str, Tensor] = {}
        k = min(5, self.info.num_classes)
        with torch.no_grad():
            for images, labels in self.tested():
                for name, logits in predict(normalise(images, normalisation or self.normalisation)).items():
                    ranked = logits.topk(k, dim=1).indices == labels[:, None]
                    counts = torch.stack([ranked[:, 0].sum(), ranked.any(1).sum()])
                    hits[name] = hits.get(name, 0) + counts
        percent = {
            name: [100 * count / self.test_samples for count in counts.tolist()] for name, counts in hits.items()
        }
        return {name: {"top1": values[0], "top5": values[1]} for name, values in percent.items()}


class ImageData(Images):
    """A set of images that lies on the device."""

    def __init__(self, train: Split, test: Split, num_classes: int, protocol: Protocol, device: torch.device) -> None:
        if protocol.holdout:
            chosen = held_out(len(train.labels), protocol.holdout)
            train, test = (Split(train.images[indices], train.labels[indices]) for indices in chosen)
        if protocol.label_noise:
            train = Split(train.images, noisy(train.labels, protocol.label_noise, num_classes))
        height, width, channels = train.images.shape[1:]
        super().__init__(train.labels, num_classes, len(test.labels), (channels, height, width), protocol, device)
        self.train = Split(train.images.to(device), train.labels.to(device))
        self.test = Split(test.images.to(device), test.labels.to(device))

    def batches(self, seed: int, epoch: int, start: int = 0) -> Iterator[ImageBatch]:
        for step, chosen in self.order(seed, epoch, start):
            indices = chosen.to(self.device)
            second = partial(self._second_view, seed, epoch, step, chosen) if self.protocol.second_view else None
            cropped = partial(self._augmented, seed, epoch, step)
            answers = self.answers.of(chosen, cropped) if self.answers else None
            yield self.batch((seed, epoch, step), cropped(chosen), indices, second).with_answers(answers)

    def clean(self, indices: Tensor, test: bool = False) -> ImageBatch:
        chosen, split = indices.to(self.device), self.test if test else self.train
        drawn = None if test else self.answers
        answers = drawn.of(indices, lambda positions: split.images[positions.to(self.device)]) if drawn else None
        return ImageBatch(split.images[chosen], split.labels[chosen], chosen, self.seen).with_answers(answers)

    def tested(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = CPU_EVAL_BATCH if self.device.type == "cpu" else EVAL_BATCH
        return zip(self.test.images.split(size), self.test.labels.split(size), strict=True)

    def cleaned(self, indices: Tensor, size: int) -> Iterator[ImageBatch]:
        return map(self.clean, indices.split(size))

    def augmented(self, seed: int, size: int) -> Iterator[ImageBatch]:
        """All training images in their order, augmented as in no epoch."""
        for number, chosen in enumerate(torch.arange(self.info.num_samples).split(size)):
            images, indices = self._cropped(chosen, generator(seed, "augmented", number)), chosen.to(self.device)
            yield ImageBatch(images, self.train.labels[indices], indices, self.seen)

    def _augmented(self, seed: int, epoch: int, step: int, chosen: Tensor) -> Tensor:
        """The images at ``chosen`` as a step has them: at one place of the batch any image gets the same crop."""
        return self._cropped(chosen, generator(seed, "augmentation", epoch, step))

    def _cropped(self, chosen: Tensor, draws: torch.Generator) -> Tensor:
        p = self.protocol
        augmentation = Augmentation(p.crop_padding, p.flip, p.crop_fill, p.one_crop_per_batch, p.rotation)
        return augment(self.train.images, chosen, draws, augmentation)

    def _second_view(self, seed: int, epoch: int, step: int, chosen: Tensor) -> Tensor:
        draws = generator(seed, "second view", epoch, step)
        return randaugment(self._cropped(chosen, draws), draws)


def differing(name: str, official: tuple[int, ...], actual: tuple[int, ...]) -> tuple[str, ...]:
    """How the numbers of training and test images differ from the official ones, in words."""
    if not official or actual == official:
        return ()
    return (f"{name} has {actual[0]} training and {actual[1]} test images, officially {official[0]} and {official[1]}",)


def normalise(images: Tensor, normalisation: Normalisation) -> Tensor:
    """(B, H, W, C) grey levels to (B, C, H, W) of the default type, channels_last: (x / 255 - mean) / std."""
    mean, std = (torch.tensor(values, device=images.device) for values in normalisation)
    return images.to(torch.get_default_dtype()).div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


def noisy(labels: Tensor, share: float, num_classes: int) -> Tensor:
    """Labels (N,) of which a share, the same for every seed, is exchanged for another class, uniformly."""
    draws = generator(0, "label noise")
    changed = torch.randperm(len(labels), generator=draws)[: round(share * len(labels))]
    shift = torch.randint(1, num_classes, (len(changed),), generator=draws)
    labels = labels.clone()
    labels[changed] = (labels[changed] + shift) % num_classes
    return labels
