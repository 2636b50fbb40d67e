"""Batches of images with objects: what each is, is a function of the seed and of its place alone.

Importing this module imports mmdetection; ``detection.networks.configurations.prepare`` has to be called before.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import AspectRatioBatchSampler, CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.dataset import DefaultSampler, pseudo_collate
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from kd_methods.errors import DiskError

from ...common.seeding import derive, generator, seed_all
from ..tasks.coco import DetectionFiles, DetectionSplit
from .job import DetectionJob


class Draws(Sampler[tuple[int, int]]):
    """Endless draws from the training set, epoch after epoch in a new order: their number, and the image's."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __iter__(self) -> Iterator[tuple[int, int]]:
        size, number = len(self.dataset), 0
        while True:
            order = torch.randperm(size, generator=generator(self.seed, "order", number // size))
            for position in order.tolist():
                yield number, position
                number += 1


class Drawn(Dataset[Any]):
    """A data set of mmdetection whose augmentation is a function of seed and draw, whatever process loads the image."""

    def __init__(self, dataset: CocoDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        self.metainfo = dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def get_data_info(self, draw: tuple[int, int]) -> Any:
        return self.dataset.get_data_info(draw[1])

    def __getitem__(self, draw: tuple[int, int]) -> Any:
        seed_all(derive(self.seed, "augmentation", draw[0]))
        return self.dataset[draw[1]]


class From(BatchSampler):
    """Batches of images of similar shape, from a batch on; those before are drawn, but their images are not loaded.

    Of ``count`` processes that share every batch, each takes its own part of it.
    """

    def __init__(self, draws: Draws, size: int, rank: int = 0, count: int = 1) -> None:
        self.sampler: Any = draws
        self.rows = slice(rank, None, count)
        self.batch_size, self.drop_last, self.start = size, True, 0

    def __len__(self) -> int:
        """Of one epoch of the data, which mmengine's log asks for."""
        return max(1, len(self.sampler.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        # A new one each time, for it keeps what it has drawn and not yet given.
        batches = AspectRatioBatchSampler(self.sampler, self.batch_size)
        return (batch[self.rows] for batch in islice(batches, self.start, None))


def ground_truth(split: DetectionSplit, classes: tuple[str, ...]) -> COCO:
    """A split as mmdetection reads and evaluates it: with the suite's labels, not those that a file's order gives."""
    truth = COCO()
    truth.dataset = split.content(classes)
    truth.createIndex()
    truth.img_ann_map, truth.cat_img_map = truth.imgToAnns, truth.catToImgs
    return truth


class DetectionDataset(CocoDataset):
    """mmdetection's data set over a split of the suite's."""

    def __init__(self, split: DetectionSplit, classes: tuple[str, ...], **options: Any) -> None:
        self.split, self.classes = split, classes
        super().__init__(metainfo={"classes": classes}, data_prefix={"img": ""}, **options)

    def COCOAPI(self, file: str) -> COCO:
        """What :class:`CocoDataset` would read from a file."""
        return ground_truth(self.split, self.classes)


class LoadImage(LoadImageFromFile):
    """mmdetection's reader, by OpenCV; what that cannot read is one line."""

    def transform(self, results: dict[str, Any]) -> Any:
        try:
            return super().transform(results)
        except Exception as error:
            kind = type(error).__name__
            raise DiskError(f"{results['img_path']} is no readable image ({kind}); replace it") from None


def _dataset(split: DetectionSplit, classes: tuple[str, ...], pipeline: list[Any], test: bool) -> DetectionDataset:
    return DetectionDataset(
        split,
        classes,
        pipeline=pipeline,
        test_mode=test,
        filter_cfg=None if test else {"filter_empty_gt": True, "min_size": 0},
    )


def training(files: DetectionFiles, job: DetectionJob) -> DataLoader[Any]:
    """Endless batches of the training images; of several processes each has its part of every batch."""
    detection, size = job.detection, job.protocol.batch_size
    resize = {"type": "RandomChoiceResize", "scales": [(detection.long_side, side) for side in detection.short_sides],
              "keep_ratio": True}  # fmt: skip
    pipeline: list[Any] = [
        LoadImage(),
        {"type": "LoadAnnotations", "with_bbox": True},
        resize,
        *([{"type": "RandomFlip", "prob": 0.5}] if job.protocol.flip else []),
        {"type": "PackDetInputs"},
    ]
    seed = job.cell.seed
    dataset = Drawn(_dataset(files.train, files.classes, pipeline, test=False), seed)
    batches = From(Draws(dataset, seed), size, job.rank, detection.processes)
    workers: dict[str, Any] = {"num_workers": detection.workers, "persistent_workers": detection.workers > 0}
    return DataLoader(dataset, batch_sampler=batches, collate_fn=pseudo_collate, **workers)


def evaluation_transforms(scale: tuple[int, int]) -> list[Any]:
    """What an image goes through after it was read, in evaluation; ``scale``: the most of its long and short side."""
    return [
        {"type": "Resize", "scale": scale, "keep_ratio": True},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]


def validation(split: DetectionSplit, classes: tuple[str, ...], job: DetectionJob) -> DataLoader[Any]:
    """The images to evaluate on, one by one; of several processes each has its share."""
    detection = job.detection
    pipeline = [LoadImage(), *evaluation_transforms((detection.long_side, detection.test_side))]
    dataset = _dataset(split, classes, pipeline, test=True)
    sampler: Any = DefaultSampler(dataset, shuffle=False)  # each process has its share
    return DataLoader(dataset, batch_size=1, sampler=sampler, num_workers=detection.workers, collate_fn=pseudo_collate)
