"""What a method is: its settings, its losses and phases, and the networks that it trains and leaves behind."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NoReturn, TypeVar, get_args

from torch import Tensor, nn

from ..errors import UserError
from ..strict import Strict
from .batch import Batch, DataInfo, Progress, TeacherPass
from .card import Card, Needs
from .features import Outputs
from .network import Network


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
    student  whether the student is run; if not, ``losses`` gets outputs of which nothing was kept
    """

    name: str
    epochs: float
    losses: Callable[[Outputs, Outputs, Batch, Progress], Losses]
    needs: Needs
    lr: float | None = None
    student: bool = True


class MethodSettings(Strict):
    """Base of every method's settings: unknown keys and wrong types are errors, values do not change."""


S = TypeVar("S", bound=MethodSettings)


class Method(nn.Module, Generic[S]):
    """Base class of all methods: ``class KD(Method[Settings])``, with the settings' class between the brackets.

    A method defines :meth:`losses`, and :meth:`setup` where it has modules of its own. Their parameters are trained,
    saved and restored with the student's.

    ``needs`` may be refined per instance. ``raw_terms`` names distillation terms that a modifier of the logits leaves
    alone. ``phase_needs`` is what the first phases read, where there are any. ``task_weights`` names settings, where
    there are such, that weigh the term ``task`` and nothing else: a combination takes it of its first method.

    Args:
        student: the network to train, as built by the task.
        teacher: the frozen teacher; None for a :class:`TeacherlessMethod` alone.
        info: the training set's size, labels and number of classes.
        settings: an instance of the class's ``Settings``.
    """

    card: ClassVar[Card]
    needs: Needs = Needs()
    needs_teacher: ClassVar[bool] = True
    raw_terms: ClassVar[tuple[str, ...]] = ()
    phase_needs: ClassVar[Needs | None] = None
    task_weights: ClassVar[tuple[str, ...]] = ("ce", "task")
    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    settings: S
    info: DataInfo

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Settings" not in cls.__dict__:
            for argument in (x for base in cls.__dict__.get("__orig_bases__", ()) for x in get_args(base)):
                if isinstance(argument, type) and issubclass(argument, MethodSettings):
                    cls.Settings = argument

    def __init__(self, student: Network, teacher: Network | None, info: DataInfo, settings: S) -> None:
        super().__init__()
        if teacher is None and self.needs_teacher:
            raise UserError(f"method '{self.card.name}' needs a teacher")
        self.info, self.settings = info, settings
        # A tuple keeps the networks out of parameters() and state_dict(): neither is a part of the method.
        self._networks = (student, teacher)
        self.setup()

    @property
    def student(self) -> Network:
        """The network to train, as built by the task; :meth:`adapt` may give another one, which is then trained."""
        return self._networks[0]

    @property
    def teacher(self) -> Network:
        """The frozen teacher."""
        teacher = self._networks[1]
        if teacher is None:
            raise LookupError(f"method '{self.card.name}' was built without a teacher")
        return teacher

    def setup(self) -> None:
        """Build the method's trainable modules from the shapes of ``self.student`` and ``self.teacher``.

        Called once, with ``self.settings`` and ``self.info`` at hand. Parts draw their weights in the order in which
        they are built.

        Raises:
            UserError: the method cannot work on this pair.
        """

    def adapt(self, student: Network) -> Network:
        """The student as it is trained, for methods that change it, the network itself too; by default unchanged."""
        return student

    def prepare(self, teacher_pass: TeacherPass) -> None:
        """Compute once, before training, what the losses need of the teacher and the training set.

        Called after :meth:`adapt`, but not where only the cost of a step is measured: what it fills in has to exist
        from the start, with the right shapes.
        """

    def prepares(self) -> bool:
        """Whether :meth:`prepare` computes something, without which the losses are those of stand-ins."""
        return type(self).prepare is not Method.prepare

    def gathers(self) -> bool:
        """Whether the losses want all samples of a batch that processes share; the card's ``batch``, or by settings."""
        return self.card.batch == "global"

    def remarks(self) -> Sequence[str]:
        """What a reader of a table has to know of how the method was built for this pair and this data."""
        return ()

    def watched(self) -> Mapping[str, float]:
        """Scalars by name that are recorded beside the losses at the end of every epoch; by default none."""
        return {}

    def phases(self) -> Sequence[Phase]:
        """What is trained before the training proper; by default nothing."""
        return ()

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        """The terms to minimise for one batch. ``teacher`` is detached and holds what ``needs`` lists."""
        raise NotImplementedError

    def auxiliary_logits(self, student: Outputs) -> Mapping[str, Tensor]:
        """Further logits (B, K) by name, evaluated on the test set every epoch."""
        return {}

    def auxiliary_fields(self) -> Sequence[str]:
        """Fields of the student's outputs that :meth:`auxiliary_logits` reads."""
        return ()

    def deployed(self, student: Network) -> nn.Module:
        """What remains at inference, as a module that maps inputs to logits; by default the student alone."""
        return student.plain()


class TeacherlessMethod(Method[S]):
    """Base class of methods without a teacher: baselines, and those that make their targets themselves.

    The outputs that :meth:`losses` gets for the teacher hold nothing.
    """

    needs_teacher = False

    @property
    def teacher(self) -> NoReturn:
        raise LookupError(f"method '{self.card.name}' has no teacher")
