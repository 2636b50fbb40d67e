"""Two or more methods at once, by name: ``crd+kd`` trains with the terms of both.

The first method gives the task loss and may change the network; what follows adds its distillation terms. A class of
its own is made from their classes, so that a combination is built, listed and stored like a method. Settings are those
of the methods, each under its name. Importing this module does not import torch.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, cast

from .errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from .contract import (
        Batch,
        Card,
        Losses,
        Method,
        Needs,
        Network,
        Outputs,
        Phase,
        Progress,
        TeacherPass,
    )  # fmt: skip


@functools.cache
def combined(*methods: type[Method]) -> type[Method]:
    """The class that trains with the terms of all ``methods``; the same one every time.

    Raises:
        UserError: a method is there twice, has no distillation terms, or would change the network after the first.
    """
    from pydantic import create_model

    from .contract import Method, MethodSettings

    names = [method.card.name for method in methods]
    title = "+".join(names)
    for i, method in enumerate(methods):
        if names.count(names[i]) > 1:
            raise UserError(f"'{title}' is not possible: it has '{names[i]}' twice")
        if not method.card.distills:
            raise UserError(f"'{title}' is not possible: '{names[i]}' has no distillation terms to combine")
        if i and (method.adapt is not Method.adapt or method.deployed is not Method.deployed):
            raise UserError(f"'{title}' is not possible: '{names[i]}' changes the network and has to come first")
    fields: dict[str, Any] = {
        name: (method.Settings, method.Settings()) for name, method in zip(names, methods, strict=True)
    }
    phase_needs = [method.phase_needs for method in methods if method.phase_needs]
    members: dict[str, Any] = {
        "card": _card([method.card for method in methods]),
        "needs": _joined(method.needs for method in methods),
        "phase_needs": _joined(phase_needs) if phase_needs else None,
        "needs_teacher": any(method.needs_teacher for method in methods),
        "Settings": create_model("Settings", __base__=MethodSettings, **fields),
        "combines": methods,
        "__doc__": f"{' and '.join(method.card.title for method in methods)} at once; the task loss is {names[0]}'s.",
        "__module__": methods[0].__module__,
    }
    return type("_".join(method.__name__ for method in methods), (_base(),), members)


def _joined(needs: Iterable[Needs]) -> Needs:
    return functools.reduce(lambda a, b: a.joined(b), needs)


def _card(cards: Sequence[Card]) -> Card:
    from .contract import Card

    first, *others = cards
    return Card(
        name="+".join(card.name for card in cards),
        version=sum(card.version for card in cards) - len(others),
        family=first.family,
        title=" + ".join(card.title for card in cards),
        paper=first.paper,
        formula=f"{first.formula}; plus the distillation terms of "
        + ", of ".join(f"{card.name}: {card.formula}" for card in others),
        source="; ".join(f"{card.name}: {card.source}" for card in cards),
        optimum="identity"
        if all(card.optimum == "identity" for card in cards)
        else "; ".join(f"{card.name}: {card.optimum}" for card in cards),
        order="; ".join(card.order for card in cards if card.order),
        hard_labels="; ".join(f"{card.name}: {card.hard_labels}" for card in cards if card.hard_labels),
        divergences=tuple(f"{card.name}: {text}" for card in cards for text in card.divergences),
        our_choice=tuple(f"{card.name}.{key}" for card in cards for key in card.our_choice),
        recipe=next((card.recipe for card in cards if card.recipe), ""),
        modality=next((card.modality for card in cards if card.modality != "any"), "any"),
        classes=max(card.classes for card in cards),
        batch="global" if any(card.batch == "global" for card in cards) else "local",
        waits="; ".join(card.waits for card in cards if card.waits),
        by_sample=all(card.by_sample for card in cards),
        detectors=all(card.detectors for card in cards),
    )


@functools.cache
def _base() -> type[Method]:
    from torch import nn

    from .contract import Losses as Terms
    from .contract import Method

    class Combination(Method):
        """See the module; ``combines`` are the classes of its methods."""

        combines: tuple[type[Method], ...]

        def setup(self) -> None:
            student, teacher = self._networks
            first = self._built(self.combines[0], student, teacher)
            # The others are built for the network as the first method changes it, and see its outputs. They may read
            # its shapes, so what the first one inserts has to be where the student is.
            changed = first.to(next(student.parameters()).device).adapt(student)
            self._adapted = (changed,)
            others = [self._built(kind, changed, teacher) for kind in self.combines[1:]]
            # Checkpoints have this name in their keys.
            self.parts = nn.ModuleList([first, *others])
            self._join_needs()

        def _built(self, kind: type[Method], student: Network, teacher: Network | None) -> Method:
            return kind(student, teacher, self.info, getattr(self.settings, kind.card.name))

        @property
        def _methods(self) -> Sequence[Method]:
            return cast("Sequence[Method]", self.parts)

        def adapt(self, student: Network) -> Network:
            return self._adapted[0]

        def prepares(self) -> bool:
            return any(method.prepares() for method in self._methods)

        def prepare(self, teacher_pass: TeacherPass) -> None:
            for method in self._methods:
                method.prepare(teacher_pass)
            self._join_needs()

        def _join_needs(self) -> None:
            self.needs = _joined(method.needs for method in self._methods)  # type: ignore[misc]

        def gathers(self) -> bool:
            return any(method.gathers() for method in self._methods)

        def remarks(self) -> Sequence[str]:
            return [remark for method in self._methods for remark in method.remarks()]

        def watched(self) -> Mapping[str, float]:
            return {
                f"{kind.card.name}.{name}": value
                for kind, method in zip(self.combines, self._methods, strict=True)
                for name, value in method.watched().items()
            }

        def phases(self) -> Sequence[Phase]:
            return [phase for method in self._methods for phase in method.phases()]

        def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
            losses = [method.losses(student, teacher, batch, progress) for method in self._methods]
            task: dict[str, Tensor] = dict(losses[0].task)
            distill: dict[str, Tensor] = {}
            for kind, terms in zip(self.combines, losses, strict=True):
                further = {f"{kind.card.name}.{key}": term for key, term in terms.task.items() if key != "task"}
                task |= further if kind is not self.combines[0] else {}
                distill |= {f"{kind.card.name}.{key}": term for key, term in terms.distill.items()}
            return Terms(task, distill)

        def auxiliary_logits(self, student: Outputs) -> Mapping[str, Tensor]:
            return {
                f"{kind.card.name}.{name}": logits
                for kind, method in zip(self.combines, self._methods, strict=True)
                for name, logits in method.auxiliary_logits(student).items()
            }

        def auxiliary_fields(self) -> Sequence[str]:
            return list(dict.fromkeys(field for method in self._methods for field in method.auxiliary_fields()))

        def deployed(self, student: Network) -> nn.Module:
            return self._methods[0].deployed(student)

    return Combination
