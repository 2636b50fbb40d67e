"""Whether a teacher's file measures what its entry expects."""

from __future__ import annotations

from typing import Any

from ..config.protocol import Protocol, load_protocol
from ..tasks import get_task
from .zoo import TOLERANCE, Teacher

_USUAL = {
    "imagenet": "imagenet-100",
    "tiny-imagenet": "tiny-imagenet-letkd",
    "images": "cifar100-crd240",
    "text": "glue-ft",
    "detection": "coco-1x",
}
"""The protocol under which a teacher file is verified, by its task, or else by what its network reads."""

Accuracies = dict[tuple[str, str], float]
"""What teacher files measure, by network and task."""


def is_off(entry: Teacher, measured: float | None, protocol: Protocol) -> bool:
    """Whether a teacher measures something else than its entry expects, where that can be said.

    On held-out training images, which it was trained on, its accuracy says nothing, and with images of another size it
    is another one.
    """
    if entry.expected is None or measured is None or abs(measured - entry.expected) <= TOLERANCE:
        return False
    return not protocol.holdout and test_inputs(protocol) == test_inputs(usual_protocol(protocol.task))


def usual_protocol(task: str) -> Protocol:
    """The protocol under which a teacher of a task is verified."""
    return load_protocol(_USUAL.get(task) or _USUAL[get_task(task).inputs])


def test_inputs(protocol: Protocol) -> dict[str, Any]:
    """What becomes of images and texts before a network sees them in evaluation."""
    found: dict[str, Any] = {}
    if protocol.crops:
        found |= protocol.crops.model_dump(include={"size", "test_resize", "interpolation"})
    if protocol.detection:
        found |= protocol.detection.model_dump(include={"test_side", "long_side"})
    if protocol.max_length:
        found |= {"max_length": protocol.max_length, "tokenizer": protocol.tokenizer}
    return found
