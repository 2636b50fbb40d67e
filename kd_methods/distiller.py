"""Any method on any two networks, as one module, for training loops of anybody's own."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from . import registry
from .contract import NO_OUTPUTS, Batch, DataInfo, Losses, Network, Outputs, Phase, Progress, TeacherPass
from .errors import UserError
from .views import view

EPOCHS = 240
"""Epochs of a whole training in which methods count their warm-ups, where progress is a share of it: CIFAR's recipe."""

_log = logging.getLogger(__name__)


@dataclass
class StepLosses(Losses):
    """The terms of a batch, weights included: ``total()`` is what is minimised, ``terms()`` has them by name.

    logits  (B, K) of the student on the batch; None in a first phase that does not run it
    """

    logits: Tensor | None = None


class Distiller(nn.Module):
    """A student, what its method adds to it, and a frozen teacher; called with a batch it gives the losses.

    >>> kd = Distiller("dkd", student, teacher, num_classes=100, beta=2.0)
    >>> optimizer = torch.optim.SGD(kd.parameters(), 0.05)
    >>> kd(images, labels, progress=epoch / epochs).total().backward()

    Parameters, state dict, device and mode are those of what is trained: the student and the method's own modules. The
    teacher moves along, but is no part of them. What the method put into the student is there under the student's keys.

    Args:
        name: a method, as ``kd_methods.available()`` has them, modified (``kd@ls``) or combined (``crd+kd``) too.
        student: maps images (B, C, H, W) to logits (B, K), or a Network (:func:`kd_methods.view`); it is trained as it
            is, not a copy. Some methods change its classifier or add modules; :meth:`deployed` has what is left. Of
            SimKD, whose student ends in the teacher's classifier, a copy without its own one is trained.
        teacher: as the student; it is frozen, put into evaluation mode and moved to the student's device. None for
            methods without a teacher.
        num_classes: K; 1 for a regression.
        input_shape: (C, H, W) of one image.
        num_samples: size of the training set, for methods that depend on it; by default the number of ``labels``.
        labels: (N,) of the training set in its order, for methods that depend on them.
        **settings: settings of the method that differ from its defaults.

    ``task_loss`` is the task's own loss of logits (B, K) and labels, by default cross-entropy, of a regression the mean
    squared error; another function may be assigned.

    Raises:
        UserError: unknown name or setting, networks that cannot be cut into units, a pair or a task that the method
            is not made for, or something of the training set that it needs and was not given.
    """

    def __init__(
        self,
        name: str,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        num_classes: int,
        input_shape: tuple[int, ...] = (3, 224, 224),
        num_samples: int | None = None,
        labels: Tensor | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.task_loss: Callable[[Any, Tensor], Tensor] = _squared_error if num_classes == 1 else F.cross_entropy
        network = student if isinstance(student, Network) else view(student, input_shape)
        device = next(network.parameters()).device
        if teacher is not None and not isinstance(teacher, Network):
            teacher = view(teacher, input_shape)
        if teacher is not None and {*map(id, network.parameters())} & {*map(id, teacher.parameters())}:
            raise UserError("student and teacher share parameters, and the teacher's are frozen; give a copy.deepcopy")
        # A tuple keeps the teacher out of parameters(), state_dict() and train().
        self._teacher = () if teacher is None else (teacher.requires_grad_(False).eval().to(device),)
        labels = None if labels is None else torch.as_tensor(labels)
        given = {"num_samples": num_samples or labels is not None, "labels": labels is not None}
        for what in registry.get(name).needs.data:
            if not given.get(what, True):
                raise UserError(f"method '{name}' depends on the training set: Distiller(…, {what}=…)")
        size = num_samples if num_samples is not None else 0 if labels is None else len(labels)
        if labels is not None and len(labels) != size:
            raise UserError(f"the training set has {size} samples and {len(labels)} labels")
        info = DataInfo(size, num_classes, labels)
        self.method = registry.build(name, network, teacher, info, **settings).to(device)
        registry.check_stated(name, settings)
        self.student = self.method.adapt(network).to(device)
        self.name = name
        self._prepared = not self.method.prepares()
        self._phases = tuple(self.method.phases())
        self._phase: Phase | None = None
        self._begun = not self._phases
        self.training = getattr(student, "module", student).training
        self.method.train(self.training)
        self.register_state_dict_post_hook(_drop_shared)
        self.register_load_state_dict_pre_hook(_fill_shared)

    @property
    def teacher(self) -> Network | None:
        """The frozen teacher."""
        return next(iter(self._teacher), None)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What is trained before the training proper, with losses of its own; for most methods nothing.

        A :class:`~kd_methods.contract.Phase` has a name, its number of epochs (of :data:`EPOCHS`) and, where it has its
        own, a learning rate. The optimiser starts anew after each.
        """
        return self._phases

    def begin(self, phase: Phase | None = None) -> None:
        """Go on with one of :attr:`phases`, or, by default, with the training proper.

        Raises:
            UserError: the method has no such phase.
        """
        if phase is not None and phase not in self._phases:
            raise UserError(f"method '{self.name}' has no phase '{phase.name}'; kd.phases has those that it has")
        self._phase, self._begun = phase, True

    def prepare(self, loader: Iterable[Any]) -> None:
        """Compute what the method's losses need of the teacher and the training set; at once where that is nothing.

        To be called before the optimiser is made and a state dict is loaded, since a method's modules may depend on it,
        and again when the training goes on in another process: what is computed is no part of the state dict.

        Args:
            loader: a ``DataLoader`` over the training set; its images in their order and without augmentation are what
                a method is prepared from. Samples are (image, label, …), or mappings with ``pixel_values`` and
                ``labels``.

        Raises:
            UserError: a loader without a data set that can be indexed, or one of another size than was said.
        """
        teacher = self.teacher
        if not self.method.prepares() or teacher is None:
            return
        if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, Sized):
            raise UserError(f"method '{self.name}' is prepared from a DataLoader over a data set that can be indexed")
        size = self.method.info.num_samples
        if size not in (0, len(loader.dataset)):
            raise UserError(f"the training set has {len(loader.dataset)} samples, the Distiller was made for {size}")
        self.method.prepare(LoaderPass(teacher, loader, self.method.info.labels))
        self._prepared = True

    def forward(
        self,
        images: Tensor | tuple[Tensor, Tensor],
        labels: Tensor,
        indices: Tensor | None = None,
        progress: float | Progress = 0.0,
    ) -> StepLosses:
        """The terms to minimise for one batch.

        Args:
            images: (B, C, H, W), normalised as both networks want them; or a pair of such, two differently augmented
                views of the same images, for methods that need two.
            labels: (B,) classes, of a regression (B,) or (B, 1) numbers; or soft labels (B, K), the classes' shares,
                which sum to 1, as mixup and CutMix make them. Terms that need one class take the one with the largest
                share.
            indices: (B,) positions of the images in the training set, for methods that need them.
            progress: how much of the training is done, from 0 to 1, by which methods warm up or fade terms; one that
                always stays 0 leaves them as in the first epoch. Or a :class:`~kd_methods.contract.Progress`.

        Raises:
            UserError: something that the method needs is missing: preparation, a first phase, indices, a second view,
                enough samples; labels of another shape; or the networks have other numbers of logits than
                ``num_classes``.
        """
        views = (images,) if isinstance(images, Tensor) else tuple(images)
        self._check(views, indices)
        self._check_labels(labels, len(views[0]))
        phase, method = self._phase, self.method
        needs = phase.needs if phase else method.needs
        where = progress if isinstance(progress, Progress) else _progress(progress)
        views = views[: needs.views]
        second = views[1] if needs.views > 1 else None
        numbers = labels.new_empty(0, dtype=torch.long) if indices is None else indices
        labels = labels.flatten() if self.num_classes == 1 else labels
        soft = labels if labels.dim() == 2 else None
        hard = labels if soft is None else soft.argmax(1)
        batch = Batch(views[0], hard, numbers, self.task_loss, second, soft_labels=soft)
        student = teacher = NO_OUTPUTS
        if not phase or phase.student:
            student = self._outputs(self.student, views, needs.student, needs.student_units)
        if self.teacher is not None and (needs.teacher or needs.teacher_units):
            with torch.no_grad():
                teacher = self._outputs(self.teacher, views, needs.teacher, needs.teacher_units)
        losses = (phase.losses if phase else method.losses)(student, teacher, batch, where)
        return StepLosses(losses.task, losses.distill, None if student is NO_OUTPUTS else student.logits)

    def deployed(self) -> nn.Module:
        """What remains at inference: maps images to logits. For most methods it is the student that was given."""
        return self.method.deployed(self.student)

    def _outputs(
        self, network: Network, views: tuple[Tensor, ...], fields: tuple[str, ...], units: tuple[str, ...]
    ) -> Outputs:
        fields = tuple(field for field in fields if field != "logits")
        first, *others = (network(x, at=units, fields=fields) for x in views)
        if first.logits.shape[-1] != self.num_classes:
            raise UserError(
                f"a network has {first.logits.shape[-1]} logits, the Distiller was made for {self.num_classes} classes"
            )
        return first.with_second(others[0]) if others else first

    def _check(self, views: tuple[Tensor, ...], indices: Tensor | None) -> None:
        needs, size = (self._phase or self.method).needs, len(views[0])
        missing = ""
        if not self._prepared:
            missing = "computes something of the teacher and the training set first: kd.prepare(loader)"
        elif not self._begun:
            names = " and ".join(phase.name for phase in self._phases)
            missing = f"trains {names} first: kd.begin(phase) for every phase of kd.phases, then kd.begin()"
        elif "indices" in needs.data and indices is None:
            missing = "needs the images' positions in the training set: kd(images, labels, indices)"
        elif len(views) < needs.views:
            missing = "needs two views of each image: kd((images, second), labels)"
        elif size < needs.min_batch or (needs.max_batch and size > needs.max_batch):
            limit = f"at least {needs.min_batch}" if size < needs.min_batch else f"at most {needs.max_batch}"
            missing = f"needs batches of {limit} samples, here are {size} (DataLoader's drop_last)"
        if missing:
            raise UserError(f"method '{self.name}' {missing}")

    def _check_labels(self, labels: Tensor, size: int) -> None:
        shapes = (size,), (size, self.num_classes)
        if tuple(labels.shape) not in shapes:  # what broadcasts would compare every image with every label
            soft = f", or the classes' shares {shapes[1]}" if self.num_classes > 1 else ""
            raise UserError(f"labels of {size} images are {shapes[0]}{soft}, not {tuple(labels.shape)}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        for teacher in self._teacher:
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _shared(self) -> dict[str, str]:
        """Keys of the method's tensors that it put into the student, and the keys that they have there."""
        of_student = {id(tensor): name for name, tensor in _tensors(self.student)}
        both = ((name, of_student.get(id(tensor))) for name, tensor in _tensors(self.method))
        return {f"method.{name}": f"student.{other}" for name, other in both if other}


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _drop_shared(kd: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    assert isinstance(kd, Distiller)
    for key in kd._shared():
        state.pop(f"{prefix}{key}", None)


def _fill_shared(kd: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(kd, Distiller)
    for key, other in kd._shared().items():
        if f"{prefix}{other}" in state:
            state[f"{prefix}{key}"] = state[f"{prefix}{other}"]


def _squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))


def _progress(share: float) -> Progress:
    if not 0 <= share <= 1:
        raise UserError(f"progress={share} is no share of the training; pass epoch / epochs, from 0 to 1")
    return Progress(min(math.floor(share * EPOCHS) + 1, EPOCHS), EPOCHS)


class LoaderPass(TeacherPass):
    """The frozen teacher on the data set of a loader, read in its order; see :class:`~kd_methods.contract.TeacherPass`.

    Nothing is stored.
    """

    def __init__(self, teacher: Network, loader: DataLoader[Any], labels: Tensor | None) -> None:
        self.teacher, self.loader = teacher, loader
        all_labels = torch.cat([labels for _, labels in self._batches(None)]) if labels is None else labels
        self.labels = all_labels.cpu()

    def _batches(self, indices: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels at these positions, by default at all."""
        loader = self.loader
        data = loader.dataset if indices is None else Subset(loader.dataset, indices.tolist())
        size, workers = loader.batch_size or 1, loader.num_workers
        for batch in DataLoader(data, size, num_workers=workers, collate_fn=loader.collate_fn):
            if isinstance(batch, Mapping):
                yield batch["pixel_values"], batch["labels"]
            else:
                yield batch[0], batch[1]

    def outputs(self, units: Iterable[str], indices: Tensor | None = None) -> Iterator[tuple[Outputs, Tensor]]:
        units, weight = tuple(units), next(self.teacher.parameters())
        for images, labels in self._batches(indices):
            with torch.no_grad():
                yield self.teacher(images.to(weight), at=units, fields=()), labels.to(weight.device)

    def progress(self, text: str) -> None:
        _log.info(text)

    def stored(
        self, what: str, settings: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        device = next(self.teacher.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            return {name: value.to(device) for name, value in compute().items()}
