"""Two or more methods at once, by name: ``crd+kd`` trains with the terms of both.

The first method gives the task loss and may change the network; what follows adds its distillation terms. A class of
its own is made from the classes of the parts, so that a combination is built, listed and stored like a method. Settings
are those of the parts, each under its name. Importing this module does not import torch.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

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
def combined(*parts: type[Method]) -> type[Method]:
    """The class that trains with the terms of all ``parts``; the same one every time.

    Raises:
        UserError: a part is there twice, has no distillation terms, or would change the network after the first.
    """
    from pydantic import create_model

    from .contract import Method, MethodSettings

    names = [part.card.name for part in parts]
    title = "+".join(names)
    for i, part in enumerate(parts):
        if names.count(names[i]) > 1:
            raise UserError(f"'{title}' is not possible: it has '{names[i]}' twice")
        if not part.card.distills:
            raise UserError(f"'{title}' is not possible: '{names[i]}' has no distillation terms to combine")
        if i and (part.adapt is not Method.adapt or part.deployed is not Method.deployed):
            raise UserError(f"'{title}' is not possible: '{names[i]}' changes the network and has to come first")
    fields: dict[str, Any] = {name: (part.Settings, part.Settings()) for name, part in zip(names, parts, strict=True)}
    phase_needs = [part.phase_needs for part in parts if part.phase_needs]
    members: dict[str, Any] = {
        "card": _card([part.card for part in parts]),
        "needs": _joined(part.needs for part in parts),
        "phase_needs": _joined(phase_needs) if phase_needs else None,
        "needs_teacher": any(part.needs_teacher for part in parts),
        "Settings": create_model("Settings", __base__=MethodSettings, **fields),
        "parts_of": parts,
        "__doc__": f"{' and '.join(part.card.title for part in parts)} at once; the task loss is {names[0]}'s.",
        "__module__": parts[0].__module__,
    }
    return type("_".join(part.__name__ for part in parts), (_base(),), members)


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
    )


@functools.cache
def _base() -> type[Method]:
    from torch import nn

    from .contract import Losses as Terms
    from .contract import Method

    class Combination(Method):
        """See the module; ``parts_of`` are the classes of the parts."""

        parts_of: tuple[type[Method], ...]

        def setup(self) -> None:
            student, teacher = self._networks
            first = self._part(self.parts_of[0], student, teacher)
            # The others are built for the network as the first method changes it, and see its outputs. They may read
            # its shapes, so what the first one inserts has to be where the student is.
            changed = first.to(next(student.parameters()).device).adapt(student)
            self._adapted = (changed,)
            self.parts = nn.ModuleList([first, *(self._part(part, changed, teacher) for part in self.parts_of[1:])])
            self._join_needs()

        def _part(self, part: type[Method], student: Network, teacher: Network | None) -> Method:
            return part(student, teacher, self.info, getattr(self.settings, part.card.name))

        def adapt(self, student: Network) -> Network:
            return self._adapted[0]

        def prepares(self) -> bool:
            return any(part.prepares() for part in self.parts)  # type: ignore[operator]

        def prepare(self, teacher_pass: TeacherPass) -> None:
            for part in self.parts:
                part.prepare(teacher_pass)  # type: ignore[operator]
            self._join_needs()

        def _join_needs(self) -> None:
            self.needs = _joined(part.needs for part in self.parts)  # type: ignore[misc]

        def gathers(self) -> bool:
            return any(part.gathers() for part in self.parts)  # type: ignore[operator]

        def remarks(self) -> Sequence[str]:
            return [remark for part in self.parts for remark in part.remarks()]  # type: ignore[operator]

        def phases(self) -> Sequence[Phase]:
            return [phase for part in self.parts for phase in part.phases()]  # type: ignore[operator]

        def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
            losses = [part.losses(student, teacher, batch, progress) for part in self.parts]  # type: ignore[operator]
            task: dict[str, Tensor] = dict(losses[0].task)
            distill: dict[str, Tensor] = {}
            for part, terms in zip(self.parts_of, losses, strict=True):
                further = {f"{part.card.name}.{key}": term for key, term in terms.task.items() if key != "task"}
                task |= further if part is not self.parts_of[0] else {}
                distill |= {f"{part.card.name}.{key}": term for key, term in terms.distill.items()}
            return Terms(task, distill)

        def probes(self, student: Outputs) -> Mapping[str, Tensor]:
            return {
                f"{kind.card.name}.{name}": logits
                for kind, part in zip(self.parts_of, self.parts, strict=True)
                for name, logits in part.probes(student).items()  # type: ignore[operator]
            }

        def probe_fields(self) -> Sequence[str]:
            return list(dict.fromkeys(field for part in self.parts for field in part.probe_fields()))  # type: ignore[operator]

        def deployed(self, student: Network) -> nn.Module:
            return self.parts[0].deployed(student)  # type: ignore[operator]

    return Combination
