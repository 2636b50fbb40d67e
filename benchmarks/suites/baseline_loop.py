"""The loop that the field's repositories share, as a baseline that ours is measured against; nothing else uses it.

One student at a time with the teacher in the same step; images by PIL and a ``DataLoader``, NCHW, fp32, eager, torch's
plain SGD, loss and accuracy read after every step: as RepDistiller and mdistiller have it. Networks, methods and
losses are the suite's, so that the loops differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kd_methods.contract import NO_OUTPUTS, Batch

from ..config.protocol import Protocol
from ..networks import NetworkView, build_network
from ..store.cell import Cell
from ..tasks.images import ImageData
from ..tasks.losses import cross_entropy
from ..training.assembly import Assembly
from ..training.loop import protocol_progress


class Pictures(Dataset[tuple[Tensor, int, int]]):
    """(image, label, index) of a training set, through PIL as torchvision's data sets of small images do it."""

    def __init__(self, data: ImageData) -> None:
        protocol = data.protocol
        self.images, self.labels = data.train.images.cpu().numpy(), data.train.labels.tolist()
        fill: dict[str, Any] = {} if protocol.crop_fill == "zeros" else {"padding_mode": protocol.crop_fill}
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(self.images.shape[1], protocol.crop_padding, **fill),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(protocol.mean, protocol.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index], index


class BaselineLoop:
    """A cell in the plain loop.

    Args:
        cell: student, method and its settings.
        protocol: its recipe.
        data: the task's data.
        teacher: a frozen teacher of the layout in memory that networks are built in, or None.
        workers: processes that load images; 0 for none.
    """

    def __init__(
        self, cell: Cell, protocol: Protocol, data: ImageData, teacher: NetworkView | None, workers: int = 2
    ) -> None:
        self.device, self.teacher = data.device, teacher
        student = build_network(cell.student, data.info.num_classes, data.input_shape)
        assembly = Assembly(cell, student, teacher, data.info, self.device)
        self.method, self.student = assembly.method, assembly.student
        parameters = [*self.student.parameters(), *self.method.parameters()]
        settings = cell.under(protocol).optimizer
        assert settings.name == "sgd", "the baseline has no other"
        self.optimizer = torch.optim.SGD(
            [parameter for parameter in dict.fromkeys(parameters) if parameter.requires_grad],
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
        self.progress = protocol_progress(protocol, 1)
        self.loss = partial(cross_entropy, protocol.label_smoothing)
        self._loader = partial(
            DataLoader,
            Pictures(data),
            protocol.batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
        )
        self.student.train()
        self.method.train()

    def batches(self) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
        """(images, labels, indices), one epoch after another."""
        loader = self._loader()
        while True:
            yield from loader

    def step(self, images: Tensor, labels: Tensor, indices: Tensor) -> float:
        """One step; returns its loss."""
        images, labels = images.to(self.device), labels.to(self.device)
        taught = NO_OUTPUTS
        if self.teacher:
            with torch.no_grad():
                taught = self.teacher(images, at=self.method.needs.teacher_units)
        outputs = self.student(images, at=self.method.needs.student_units)
        batch = Batch(images, labels, indices, self.loss)
        loss = self.method.losses(outputs, taught, batch, self.progress).total()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        (outputs.logits.topk(5).indices == labels[:, None]).float().mean().item()
        return loss.item()
