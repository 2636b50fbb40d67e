"""Changes that work on many methods, named after an ``@``: ``kd@ls`` is KD on standardised logits.

A modifier makes a class of its own from a method's class: with its own name, card and default settings, built and
listed like a method, without a file for every combination. Importing this module does not import torch.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from .contract import Batch, Losses, Method, MethodSettings, Outputs, Progress


@dataclasses.dataclass(frozen=True, eq=False)
class Modifier:
    """One modifier.

    name       what follows the ``@``
    version    raised when results change; enters the version of the modified method
    title      appended to the method's title in tables
    paper      key in tables/references.bib
    summary    one line
    source     where ``defaults`` come from, of those methods that have no source of their own in ``sources``
    defaults   settings of single methods that differ once they are modified
    sources    where those of single methods come from
    obstacle   why a method cannot be modified, or None
    mix        a method's class with the change, not yet with its card and settings
    """

    name: str
    version: int
    title: str
    paper: str
    summary: str
    source: str
    divergences: tuple[str, ...]
    defaults: Mapping[str, Mapping[str, Any]]
    sources: Mapping[str, str]
    obstacle: Callable[[type[Method]], str | None]
    mix: Callable[[type[Method]], type[Method]]

    @functools.cache  # noqa: B019, there are few, and each lives as long as the program
    def applied(self, method: type[Method]) -> type[Method]:
        """The modified method's class; the same one every time.

        Raises:
            UserError: the modifier does not work on this method.
        """
        base = method.card
        reason = "it has that already" if self.name in base.name.split("@")[1:] else self.obstacle(method)
        if reason:
            raise UserError(f"'{base.name}@{self.name}' is not possible: {reason}")
        defaults = self.defaults.get(base.name)
        source = self.sources.get(base.name, self.source)
        unpublished = f"the settings are {base.name}'s own, but for pairs that have others with @{self.name}"
        changed: dict[str, Any] = {
            "card": dataclasses.replace(
                base,
                name=f"{base.name}@{self.name}",
                version=base.version + self.version - 1,
                title=f"{base.title} + {self.title}",
                paper=self.paper,
                formula=f"{base.formula}; {self.summary}",
                source=f"{source}; else {base.source}" if defaults else f"{base.source} ({unpublished})",
                divergences=(*base.divergences, *self.divergences),
                optimum="identity" if base.optimum == "identity" else f"{base.optimum} (after the change)",
                classes=max(base.classes, 2),
                our_choice=base.our_choice if defaults else tuple(method.Settings.model_fields),
            ),
            "Settings": _with_defaults(method.Settings, defaults or {}),
            "__doc__": f"{base.title} with a change: {self.summary}.",
            "__module__": method.__module__,
        }
        return type(f"{method.__name__}_{self.name}", (self.mix(method),), changed)


def _with_defaults(settings: type[MethodSettings], defaults: Mapping[str, Any]) -> type[MethodSettings]:
    from pydantic import create_model

    fields: dict[str, Any] = {}
    for key, value in defaults.items():
        field = copy.copy(settings.model_fields[key])
        field.default = value
        fields[key] = (field.annotation, field)
    return create_model("Settings", __base__=settings, **fields)


def _not_logits_only(method: type[Method]) -> str | None:
    needs = method.needs
    if method.phase_needs:
        return f"'{method.card.name}' has a first phase; @ls works on methods that read nothing but logits"
    reads = [*needs.student, *needs.student_units, *needs.teacher_units, *(x for x in needs.teacher if x != "logits")]
    if reads:
        return f"'{method.card.name}' reads {reads[0]}; @ls works on methods that read nothing but logits"
    return None if needs.teacher else f"'{method.card.name}' has no teacher whose logits could be standardised"


def _standardized(method: type[Method]) -> type[Method]:
    from .contract import Losses as Terms
    from .functional import standardize

    class Standardized(method):  # type: ignore[valid-type, misc]
        def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
            standardised = [outputs.with_logits(standardize) for outputs in (student, teacher)]
            # Two calls, because the task loss stays on the raw logits; on (B, K) they cost next to nothing.
            raw = super().losses(student, teacher, batch, progress)
            distill = super().losses(standardised[0], standardised[1], batch, progress).distill
            return Terms(task=raw.task, distill=distill | {name: raw.distill[name] for name in self.raw_terms})

    return Standardized


MODIFIERS: dict[str, Modifier] = {
    modifier.name: modifier
    for modifier in (
        Modifier(
            name="ls",
            version=1,
            title="LS",
            paper="sun2024ls",
            summary="distillation terms on z <- (z - mean(z)) / std(z), per row, for student and teacher",
            source="logit-standardization-KD README (--base-temp 2 --kd-weight 9)",
            divergences=(
                "the published runs of logit standardisation vary temperature (2 to 4) and weight (1 to 18) per pair",
                "the first released training script gives DKD beta 81 for 8 and leaves its temperature at 4;"
                " the defaults of dkd@ls follow the README and the corrected script: both weights times 9, T 2",
            ),
            defaults={
                "mlld": {"ce": 0.1, "kd": 9.0, "temperature": 2.0},
                "kd": {"ce": 0.1, "kd": 9.0, "temperature": 2.0},
                "dkd": {"alpha": 9.0, "beta": 72.0, "temperature": 2.0},
                "abkd": {"ce": 0.1, "weight": 36.0, "alpha": 0.9, "beta": 0.3, "temperature": 2.0},
                "rld": {"alpha": 9.0, "beta": 72.0, "temperature": 2.0, "alpha_temperature": 2.0},
            },
            sources={
                "abkd": "ghwang-s/abkd README.md, for resnet56 to resnet20 (task loss 0.1, 9 T^2, T 2) @df81318",
                "rld": "zju-SWJ/RLD tools/train.py (temperature 2, weight 9 times those of the configuration) @d54578f",
            },
            obstacle=_not_logits_only,
            mix=_standardized,
        ),
    )
}
