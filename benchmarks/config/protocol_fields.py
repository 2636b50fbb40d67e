"""Which fields of a protocol belong to what, and what one protocol takes over from another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from ..common.yaml_files import merged


class Changes(TypedDict, total=False):
    """What a run can change of its protocol; None leaves it as it is. See ``Protocol.changed``."""

    epochs: int | None
    holdout: int | None
    precision: str | None
    accumulate: int | None
    processes: int | None
    sync_bn: bool | None
    compile: bool | None


NOT_AS = "not as in"
"""So begins what a user's protocol does otherwise than the recipe that it takes over, by key."""

WORDS = ("name", "version", "title", "source", "deviations", "recipe")
"""What tells of a protocol and changes nothing that is computed."""

OF_DETECTION = {
    *("name", "version", "task", "title", "source", "deviations", "recipe", "epochs", "recipe_epochs", "batch_size"),
    *("optimizer", "milestones", "decay", "flip", "precision", "detection", "teachers_from"),
}
"""What of a protocol is read where it is one of detection."""

OF_WHOLE_IMAGES = ("crop_padding", "crop_fill", "one_crop_per_batch", "rotation", "second_view")
"""What is read where images lie on the device, as they are."""

OF_IMAGES = (
    *OF_WHOLE_IMAGES,
    *("crops", "flip", "mean", "label_smoothing", "mixing", "repeats", "task_loss", "drop_path", "compile"),
)
"""What is read where networks read images."""


def differing(one: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> list[str]:
    """Fields in which two protocols compute otherwise, those within others as ``optimizer.lr``."""
    fields: list[str] = []
    for name in dict.fromkeys((*one, *other)):
        ours, theirs, field = one.get(name), other.get(name), f"{above}{name}"
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            fields += differing(ours, theirs, f"{field}.")
        elif ours != theirs and field not in WORDS:
            fields.append(field)
    return fields


def extended(base: dict[str, Any], extending: dict[str, Any]) -> dict[str, Any]:
    """One that extends another is its own: it says its name, and what is published under the other's is not its."""
    of_base = {"name", "recipe"} if base.get("recipe") == base["name"] else {"name"}
    return merged({key: value for key, value in base.items() if key not in of_base}, extending)
