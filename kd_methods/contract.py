"""The one interface between what is compared (the methods) and how it is compared (the driver).

A method sees two networks, what their forward passes kept, and a batch. It knows no architecture, no data set and no
training loop; the loop knows no method. Everything that either side may ask of the other is declared here.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from .errors import UserError
from .patches import as_map

FIELDS = ("stem", "stages", "preacts", "blocks", "last_map", "pooled")
"""What can be kept of a forward pass besides the logits; see :class:`Layout`."""

MAPS = ("stem", "stages", "preacts", "last_map")
"""Those of them in which :class:`Outputs` have the tokens of patches as maps."""


Inputs = Literal["images", "text", "detection"]
"""What networks read: images of one class each, texts, or images with objects to be found in them."""


class Tokens(NamedTuple):
    """Hidden states of a padded batch of texts: what the layers of a text encoder hand on.

    hidden  (B, L, D)
    inputs  (B, 3, L) ids, mask and segments that the batch began with
    calls   how this encoder's layers are called for these inputs; None where the states come from elsewhere
    """

    hidden: Tensor
    inputs: Tensor
    calls: Any = None

    @property
    def mask(self) -> Tensor:
        """(B, L), true where there is a token and no padding."""
        return self.inputs[:, 1].bool()


class Pyramid(NamedTuple):
    """A detector's maps of one batch that its region heads read, from fine to coarse, and the regions they look at.

    maps     (B, C, H_l, W_l) for every level l
    regions  (N, 5): the image's number in the batch, and the corners of a region in pixels
    """

    maps: tuple[Tensor, ...]
    regions: Tensor


class Heads(NamedTuple):
    """What a detector's heads say of every region of a :class:`Pyramid`.

    logits  (N, K + 1), the last class is background
    boxes   (N, 4K) or (N, 4), in the heads' own code
    """

    logits: Tensor
    boxes: Tensor


def joined(features: Sequence[Tensor | Tokens]) -> Any:
    """Features of one kind, one after another along the batch."""
    if isinstance(features[0], Tokens):
        parts = [torch.cat([getattr(feature, name) for feature in features]) for name in ("hidden", "inputs")]
        return Tokens(*parts)
    return torch.cat(list(features))  # type: ignore[arg-type]


class Dense(NamedTuple):
    """What a one-stage detector says at every place of its pyramid.

    There is one anchor at each place; they lie level by level, image by image, row by row.

    classes   (N, K) logits of sigmoids
    edges     (N, 4, n) logits of the n bins of every edge of a box
    level     (N,) number of the level, the finest is 0
    positive  (N,) whether a box is learnt there
    """

    classes: Tensor
    edges: Tensor
    level: Tensor
    positive: Tensor


class Around(NamedTuple):
    """What the places of :class:`Dense` are to the objects of a batch.

    valuable  (N,) weights of the places in :func:`functional.valuable_region`, zero elsewhere
    near      (N,) whether a place is in :func:`functional.near_region`
    """

    valuable: Tensor
    near: Tensor


@dataclass(frozen=True)
class Layout:
    """Which units of a network's chain carry the features that methods match.

    stem      the output that enters the first stage
    stages    outputs that end a resolution stage, (B, C, H, W) or (B, L, D); what most feature methods match
    preacts   the same positions before the ReLU that follows (equal to ``stages`` where there is none)
    blocks    outputs that end the blocks of a block-wise method: as ``stages``, but layers with weights between the
              last stage and the pooling belong to the last block (Block-KD, arXiv 2411.01547; our reading)
    last_map  the map that is pooled
    pooled    the (B, D) vector that the classifier sees
    rectified the units whose outputs are non-negative by construction (they end in a ReLU)
    layers    all generalised layers in order: outputs of residual blocks, of convolutions with their ReLU, of encoder
              blocks, of the flattening (arXiv 2511.14981, as its code has them); where not given, stages and pooled
    uniform   the blocks are layers of one kind, so that networks of different depth are matched at equal shares of it
    inputs    what the network reads; the features of a text encoder are :class:`Tokens`. Of a detector the stages are
              the levels of its pyramid, each (B, C, H, W), the logits are those of the regions, (N, K + 1), and the
              unit ``pyramid`` is a :class:`Pyramid` or the units ``dense`` and ``around`` a :class:`Dense` and
              :class:`Around`; it has no stem, preacts, blocks, last_map and pooled
    prefix_tokens  of a vision transformer, how many of its tokens stand for no patch (the class token); the others are
              a square of patches, and the fields are read as maps of it, while the units' own outputs are tokens
    softmax   whether the logits are those of a softmax; else every class has a sigmoid of its own
    queries, keys, values  (B, L, D) of every layer's attention, all ``heads`` side by side, where they can be had
    """

    stem: str
    stages: tuple[str, ...]
    preacts: tuple[str, ...]
    blocks: tuple[str, ...]
    last_map: str
    pooled: str
    rectified: frozenset[str] = frozenset()
    layers: tuple[str, ...] = ()
    uniform: bool = False
    inputs: Inputs = "images"
    prefix_tokens: int | None = None
    softmax: bool = True
    queries: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    heads: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", self.layers or (*self.stages, self.pooled))

    @property
    def entry(self) -> str:
        """The output of the last stage's first block."""
        if len(self.stages) < 2:
            return self.stages[0]
        return self.layers[self.layers.index(self.stages[-2]) + 1]

    def units(self, fields: Iterable[str]) -> frozenset[str]:
        """The units to keep so that every field of ``fields`` can be read from the outputs."""
        names: set[str] = set()
        for name in fields:
            value = getattr(self, name)
            names.update((value,) if isinstance(value, str) else value)
        return frozenset(names)

    def absent(self, fields: Iterable[str]) -> list[str]:
        """Those of ``fields`` that this network does not have."""
        return [name for name in dict.fromkeys(fields) if name in FIELDS and not getattr(self, name)]


class Outputs:
    """What one forward pass computed and kept.

    ``logits`` (B, K) are always there. The fields of :class:`Layout`, single units (``outputs["layer3.0"]``) and the
    outputs of a second view of the same images (``outputs.second``) are there if they were asked for; reading one that
    was not raises ``LookupError``, so undeclared needs cannot hide.
    """

    def __init__(self, logits: Tensor, kept: Mapping[str, Any], layout: Layout, second: Outputs | None = None) -> None:
        self.logits = logits
        self._kept = kept
        self._layout = layout
        self._second = second

    def __getitem__(self, unit: str) -> Any:
        try:
            return self._kept[unit]
        except KeyError:
            raise LookupError(f"the output of unit '{unit}' was not kept; declare it in the method's needs") from None

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything that was kept."""
        kept = [value.hidden if isinstance(value, Tokens) else value for value in self._kept.values()]
        return (self.logits, *kept, *(self._second.tensors() if self._second else ()))

    def with_second(self, second: Outputs) -> Outputs:
        """These outputs, with those of the second view beside them."""
        return Outputs(self.logits, self._kept, self._layout, second)

    def with_other_logits(self, logits: Tensor) -> Outputs:
        """These outputs with (B, K) logits that were computed elsewhere."""
        return Outputs(logits, self._kept, self._layout, self._second)

    def with_logits(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """Nothing but the logits, changed, of every view."""
        second = self._second.with_logits(change) if self._second else None
        return Outputs(change(self.logits), {}, self._layout, second)

    @property
    def second(self) -> Outputs:
        """The same network's outputs on the second view of the batch."""
        if self._second is None:
            raise LookupError("there is no second view; declare views=2 in the method's needs")
        return self._second

    def _map(self, unit: str) -> Any:
        """The output of a unit as the fields have it: tokens of patches as a map."""
        value, prefix = self[unit], self._layout.prefix_tokens
        return value if prefix is None or value.dim() != 3 else as_map(value, prefix)

    @property
    def stem(self) -> Any:
        return self._map(self._layout.stem)

    @property
    def stages(self) -> tuple[Any, ...]:
        return tuple(self._map(unit) for unit in self._layout.stages)

    @property
    def preacts(self) -> tuple[Tensor, ...]:
        return tuple(self._map(unit) for unit in self._layout.preacts)

    @property
    def blocks(self) -> tuple[Any, ...]:
        return tuple(self[unit] for unit in self._layout.blocks)

    @property
    def queries(self) -> tuple[Tensor, ...]:
        return tuple(self[unit] for unit in self._layout.queries)

    @property
    def keys(self) -> tuple[Tensor, ...]:
        return tuple(self[unit] for unit in self._layout.keys)

    @property
    def values(self) -> tuple[Tensor, ...]:
        return tuple(self[unit] for unit in self._layout.values)

    @property
    def last_map(self) -> Tensor:
        return self._map(self._layout.last_map)

    @property
    def pooled(self) -> Tensor:
        return self[self._layout.pooled]


class Network(nn.Module):
    """An ordered chain of named units over a plain architecture, seen the same way for every family.

    The interface that methods rely on; ``benchmarks.networks`` holds the implementation.
    """

    module: nn.Module
    layout: Layout

    def forward(self, x: Tensor, at: Iterable[str] = (), fields: Iterable[str] = FIELDS) -> Outputs:
        """One forward pass; keeps the units named in ``at`` and those of ``fields``."""
        raise NotImplementedError

    def resume(self, unit: str, feature: Any, until: str | None = None) -> Any:
        """Run what follows ``unit`` on ``feature``: up to the logits, or up to and including the unit ``until``.

        Behind a unit of tokens the feature may be a map of their patches, too.
        """
        raise NotImplementedError

    def insert(self, unit: str, name: str, part: nn.Module) -> Network:
        """The network with ``part`` added after ``unit`` as a unit of its own called ``name``."""
        raise NotImplementedError

    def grafted(self, unit: str, name: str, part: nn.Module, other: Network, entry: str) -> Network:
        """This network up to ``unit``, ``part`` as a unit called ``name``, and what follows ``entry`` in ``other``.

        One network, trained and deployed without what does not run in it. It has copies of both networks; the end that
        is ``other``'s stays frozen and in evaluation mode.
        """
        raise NotImplementedError

    def folded(self) -> Network:
        """A frozen copy with batch-norms folded into convolutions where they can be; same outputs up to rounding."""
        raise NotImplementedError

    def batch_normalised(self) -> Network:
        """A frozen copy that normalises by the batch, without running statistics; this network stays as it is."""
        copied = copy.deepcopy(self).requires_grad_(False).eval()
        for module in copied.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean = module.running_var = None
        return copied

    def plain(self) -> nn.Module:
        """A module that maps inputs to logits: ``module``, or with inserted parts a wrapper that runs them too."""
        raise NotImplementedError

    def shape(self, unit: str) -> tuple[int, ...]:
        """Shape of a unit's output without the batch dimension."""
        raise NotImplementedError

    def shapes(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Shapes of a field of :class:`Layout` as :class:`Outputs` have it, known without data."""
        raise NotImplementedError


@dataclass(frozen=True)
class Needs:
    """What a method reads. The loop keeps the union over a group and nothing else.

    student, teacher  fields of :class:`Layout`; for the teacher also ``"logits"``. Where no method of a group lists
                      anything for the teacher, its pass is left out
    student_units, teacher_units  single units by name
    min_batch         smallest batch the losses are defined for; smaller last batches are left out of training
    max_batch         largest batch they are defined for, or 0
    views             2 to see a second, differently augmented view of every image (``outputs.second``)
    """

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    student_units: tuple[str, ...] = ()
    teacher_units: tuple[str, ...] = ()
    min_batch: int = 1
    max_batch: int = 0
    views: int = 1

    def joined(self, other: Needs) -> Needs:
        """What both need."""
        fields = {
            name: tuple(dict.fromkeys((*getattr(self, name), *getattr(other, name))))
            for name in ("student", "teacher", "student_units", "teacher_units")
        }
        limits = [limit for limit in (self.max_batch, other.max_batch) if limit]
        return Needs(
            **fields,
            min_batch=max(self.min_batch, other.min_batch),
            max_batch=min(limits, default=0),
            views=max(self.views, other.views),
        )


@dataclass(frozen=True)
class DataInfo:
    """What a method may know of the training set: its size, its labels (N,) and the number of classes.

    One class means a regression: labels are numbers, logits (B, 1) are predictions of them.
    """

    num_samples: int
    num_classes: int
    labels: Tensor | None = None

    @property
    def regression(self) -> bool:
        return self.num_classes == 1


class Study:
    """The frozen teacher on the training set as it is: what :meth:`Method.prepare` computes from.

    labels are the training set's, (N,) on the CPU.
    """

    labels: Tensor

    def outputs(self, units: Iterable[str], indices: Tensor | None = None) -> Iterator[tuple[Outputs, Tensor]]:
        """Batches of the teacher's outputs with ``units`` kept, and their labels (B,), without augmentation.

        Args:
            units: names of the teacher's units.
            indices: (M,) positions of the images to see, in this order; by default all.
        """
        raise NotImplementedError

    def progress(self, text: str) -> None:
        """Say how far a long computation is; heard every now and then."""

    def stored(
        self, what: str, settings: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What ``compute`` returns, from the store where it has been computed before.

        It is kept under the teacher, the data, ``what`` and ``settings``, so it may depend on nothing else; what it
        draws from torch's random numbers is the same for every cell. A process that is killed loses what it was at.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Batch:
    """One training batch on the device.

    inputs as the student sees them, labels (B,), positions in the training set (B,), and where a method of the group
    asked for it, a second view of the same images. In detection the labels are those of the regions, (N,), background
    is the last class, and ``boxes`` are the objects' corners in every image, (n, 4) in pixels. ``whole``: these are all
    samples of an update; else a part of them, beyond which losses that relate samples cannot see.
    """

    inputs: Tensor
    labels: Tensor
    indices: Tensor
    task_loss: Callable[[Any, Tensor], Tensor]
    second: Tensor | None = None
    boxes: tuple[Tensor, ...] = ()
    whole: bool = True

    def loss(self, logits: Tensor | Heads) -> Tensor:
        """The task's own loss (cross-entropy for classification) of ``logits`` against this batch's labels.

        In detection: of the student's logits all the losses of its detector, of other :class:`Heads` those of regions,
        of other logits that of the regions' classes.
        """
        return self.task_loss(logits, self.labels)


@dataclass(frozen=True)
class Progress:
    """Where training stands.

    ``epoch`` counts from 1 in epochs of the protocol's recipe. Under a shortened schedule it advances by ``span`` > 1
    at a time, so that what a recipe of 240 epochs does in its first 20 stays a twelfth of the training.
    """

    epoch: float
    epochs: int
    span: float = 1.0

    def ramp(self, epochs: float) -> float:
        """Linear warm-up factor min(epoch / epochs, 1), the mean over the recipe's epochs that this one stands for."""
        if epochs <= 0:
            return 1.0
        covered = range(math.floor(self.epoch - self.span) + 1, math.floor(self.epoch) + 1) or (self.epoch,)
        return sum(min(epoch / epochs, 1.0) for epoch in covered) / len(covered)


@dataclass
class Losses:
    """Named scalar terms, weights included; their sum is what is minimised.

    ``task`` terms compare with labels, ``distill`` terms with a teacher or another target of the method's own.
    """

    task: dict[str, Tensor] = field(default_factory=dict)
    distill: dict[str, Tensor] = field(default_factory=dict)

    def terms(self) -> dict[str, Tensor]:
        return {**self.task, **self.distill}

    def total(self) -> Tensor:
        return functools.reduce(operator.add, self.terms().values())


@dataclass(frozen=True)
class Phase:
    """Epochs before the training proper with losses of their own, run by the same loop.

    Parameters that get no gradient from a phase's losses stay as they are. The optimiser starts anew after it.

    name     how logs call it
    epochs   in epochs of the protocol's recipe; a shortened run shortens it in proportion, to one epoch at least
    losses   as :meth:`Method.losses`
    needs    what these losses read
    lr       learning rate throughout the phase; None for the one that the student starts with
    student  whether the student is run; if not, ``losses`` gets None for its outputs
    """

    name: str
    epochs: float
    losses: Callable[[Any, Any, Batch, Progress], Losses]
    needs: Needs
    lr: float | None = None
    student: bool = True


class MethodSettings(BaseModel):
    """Base of every method's settings: unknown keys and wrong types are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Card:
    """Who a method is: shown by ``show method``, printed in tables, part of a cell's identity (name and version).

    title       as printed in tables                    paper    key in tables/references.bib
    formula     the loss, in plain text                 source   where the default settings come from
    optimum     "identity" if the distillation terms have zero gradient where student and teacher agree; else say where
    order       why the losses depend on the order of the samples within a batch; empty if they do not
    divergences where paper, reference code and this implementation differ
    our_choice  settings whose published value is unknown: chosen by us, and marked as such wherever they show
    recipe      the protocol that the method brings along, if it does; then it is no row of tables under another one
    inputs      what the networks read: "images", "text", "detection", or "any" that has the features which are read
    classes     the least number of classes; 1 where a regression will do
    """

    name: str
    version: int
    family: str
    title: str
    paper: str = ""
    formula: str = ""
    source: str = ""
    optimum: str = "identity"
    order: str = ""
    divergences: tuple[str, ...] = ()
    our_choice: tuple[str, ...] = ()
    recipe: str = ""
    inputs: Literal["images", "text", "detection", "any"] = "images"
    classes: int = 2

    def check(self, needs: Needs, student: Layout, info: DataInfo) -> None:
        """Raise UserError where the method is not made for what the student reads, or for the number of classes."""
        if self.inputs not in ("any", student.inputs):
            raise UserError(f"method '{self.name}' is made for {self.inputs}, not for {student.inputs}")
        if absent := student.absent((*needs.student, *needs.teacher)):
            raise UserError(f"method '{self.name}' reads {', '.join(absent)}, which networks for {student.inputs} lack")
        if "logits" in needs.teacher and not student.softmax:
            raise UserError(f"method '{self.name}' compares probabilities of a softmax; this student has sigmoids")
        if info.num_classes < self.classes:
            task = "a regression" if info.regression else f"{info.num_classes} classes"
            least = f", but for {self.classes} classes at least" if self.classes > 2 else ""
            raise UserError(f"method '{self.name}' is not made for {task}{least}")


class Method(nn.Module):
    """Base class of all methods. Its own parameters are trained, saved and restored with the student's.

    ``needs`` may be refined per instance. ``needs_teacher`` says whether there has to be a teacher at all: a method may
    use one only while it is built, or make passes of its own, and read nothing of the shared pass. ``raw_terms`` names
    distillation terms that a modifier of the logits leaves alone. ``phase_needs`` is what the first phases read, where
    there are any.

    Args:
        student: the network to train, as built by the task.
        teacher: the frozen teacher, or None where there is none (only methods that need none accept that).
        info: the training set's size, labels and number of classes.
        settings: an instance of the class's ``Settings``.
    """

    card: ClassVar[Card]
    needs: Needs = Needs()
    needs_teacher: ClassVar[bool] = True
    raw_terms: ClassVar[tuple[str, ...]] = ()
    phase_needs: ClassVar[Needs | None] = None
    Settings: ClassVar[type[MethodSettings]] = MethodSettings

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: MethodSettings) -> None:
        super().__init__()
        self.settings = settings
        # A tuple keeps the networks out of parameters() and state_dict(): neither is a part of the method.
        self._networks = (student, teacher)
        if teacher is None and self.needs_teacher:
            raise UserError(f"method '{self.card.name}' needs a teacher")

    @property
    def teacher(self) -> Network:
        """The frozen teacher."""
        teacher = self._networks[1]
        assert teacher is not None
        return teacher

    def adapt(self, student: Network) -> Network:
        """The student as it is trained, for methods that change it; by default unchanged."""
        return student

    def prepare(self, study: Study) -> None:
        """Compute once, before training, what the losses need of the teacher and the training set.

        Called after :meth:`adapt`, and not at all where only the cost of a step is asked for: what it fills in has to
        have stand-ins of the right shapes from the start.
        """

    def remarks(self) -> Sequence[str]:
        """What a reader of a table has to know of how the method was built for this pair and this data."""
        return ()

    def phases(self) -> Sequence[Phase]:
        """What is trained before the training proper; by default nothing."""
        return ()

    def losses(self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress) -> Losses:
        """The terms to minimise for one batch. ``teacher`` is detached and holds what ``needs`` lists."""
        raise NotImplementedError

    def probes(self, student: Outputs) -> Mapping[str, Tensor]:
        """Further logits (B, K) by name, evaluated on the test set every epoch."""
        return {}

    def probe_fields(self) -> Sequence[str]:
        """Fields of the student's outputs that :meth:`probes` reads."""
        return ()

    def deployed(self, student: Network) -> nn.Module:
        """What remains at inference, as a module that maps inputs to logits; by default the student alone."""
        return student.plain()
