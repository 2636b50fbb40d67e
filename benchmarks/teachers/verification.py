"""Whether a teacher's file measures what its entry expects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from kd_methods.errors import UserError

from ..common.console import Outcome, counted
from ..common.devices import check_precision
from ..common.files import digest
from ..common.workspace import Workspace
from ..config.protocol import Protocol, load_protocol
from ..store import documents
from ..store.cell import TeacherRef
from ..tasks import get_task
from .zoo import TOLERANCE, Teacher, Zoo

Accuracies = dict[tuple[str, str], Mapping[str, float]]
"""What teacher files measure, each metric, by network and task."""


class TeacherAccuracy(TypedDict):
    """A document of the store's teachers/: what a teacher's file measures.

    ``value`` is the task's metric; documents of earlier versions have no other, and are measured again.
    """

    entry: str
    value: float
    metrics: NotRequired[dict[str, float]]


def is_off(entry: Teacher, measured: float | None, protocol: Protocol) -> bool:
    """Whether a teacher measures something else than its entry expects, where that can be said.

    Nothing can be said on held-out training images, which the teacher was trained on, and with images of another size,
    where its accuracy is another one.
    """
    if entry.expected is None or measured is None or abs(measured - entry.expected) <= TOLERANCE:
        return False
    return not protocol.holdout and test_inputs(protocol) == test_inputs(usual_protocol(protocol.task))


def usual_protocol(task: str) -> Protocol:
    """The protocol under which a teacher of a task is verified."""
    return load_protocol(get_task(task).usual_protocol)


def test_inputs(protocol: Protocol) -> dict[str, Any]:
    """What becomes of images and texts before a network sees them in evaluation."""
    inputs: dict[str, Any] = {}
    if protocol.crops:
        inputs |= protocol.crops.model_dump(include={"size", "test_resize", "interpolation"})
        inputs |= {"interpolation": protocol.crops.test_interpolation} if protocol.crops.test_interpolation else {}
    if protocol.detection:
        inputs |= protocol.detection.model_dump(include={"test_side", "long_side"})
    if protocol.max_length:
        inputs |= {"max_length": protocol.max_length, "tokenizer": protocol.tokenizer}
    return inputs


Measure = Callable[[Teacher, Protocol], Mapping[str, float]]
"""The metrics of a teacher's file under a protocol; the engines have it."""


def check_teachers(
    refs: Mapping[tuple[str, str], TeacherRef],
    protocol: Protocol,
    workspace: Workspace,
    measure: Measure,
    any_teacher: bool = False,
) -> Accuracies:
    """Evaluate every teacher file once per file and copy of the data; returns its metrics by network and task.

    Raises:
        UserError: a teacher is not what its entry says, and ``any_teacher`` was not given.
    """
    measured: Accuracies = {}
    zoo = Zoo(workspace.checkpoints)
    for place, ref in refs.items():
        if not ref.weights:
            continue
        entry, on_task = zoo.get(ref.entry), protocol.on_task(place[1])
        fingerprint = get_task(entry.task).fingerprint(workspace.data_root, on_task)
        path = _path(ref, fingerprint, on_task, workspace)
        known = documents.read_or_set_aside(path, TeacherAccuracy, workspace.say)
        if known is None or "metrics" not in known:
            workspace.say(f"evaluating teacher {entry.name}")
            metrics = dict(measure(entry, on_task))
            known = {"entry": entry.name, "value": metrics[get_task(place[1]).metric], "metrics": metrics}
            documents.write(path, known)
        measured[place] = known["metrics"]
        if is_off(entry, known["value"], on_task) and not any_teacher:
            raise UserError(
                f"teacher '{entry.name}' measures {known['value']:.2f} {get_task(place[1]).metric}, its entry expects "
                f"{entry.expected:.2f} ({entry.expected_source}); mend the entry or the file, or use --any-teacher"
            )
    return measured


def known_accuracies(
    refs: Mapping[tuple[str, str], TeacherRef], data: Mapping[str, str], protocol: Protocol, workspace: Workspace
) -> Accuracies | None:
    """What was measured before, or None if it was not all; ``data`` are the fingerprints of the tasks' data."""
    paths = {place: _path(ref, data[place[1]], protocol, workspace) for place, ref in refs.items() if ref.weights}
    known = {place: documents.read_or_set_aside(path, TeacherAccuracy, workspace.say) for place, path in paths.items()}
    metrics = {place: record["metrics"] for place, record in known.items() if record and "metrics" in record}
    return metrics if metrics.keys() == known.keys() else None


def _path(ref: TeacherRef, fingerprint: str, protocol: Protocol, workspace: Workspace) -> Path:
    inputs = test_inputs(protocol)  # images of another size are other images
    key = digest([ref.identity(), fingerprint, protocol.holdout, *([inputs] if inputs else [])])
    return workspace.output / "teachers" / f"{key[:16]}.json"


def verify_teachers(names: Sequence[str], workspace: Workspace, measure: Measure) -> Outcome:
    """Measure installed teachers (all, or those named) and say how far each is from its entry.

    Raises:
        UserError: one is not installed.
    """
    zoo = Zoo(workspace.checkpoints)
    entries = [zoo.get(name) for name in names] or [e for e in zoo.entries.values() if zoo.path(e).is_file()]
    if not entries:
        raise UserError(f"no teacher is installed in {zoo.folder}; see: teachers list, teachers add NAME FILE")
    check_precision(workspace.device)
    off = []
    for entry in entries:
        metric = get_task(entry.task).metric
        value = measure(entry, usual_protocol(entry.task))[metric]
        gap = None if entry.expected is None else value - entry.expected
        verdict = "no expected accuracy" if gap is None else f"expected {entry.expected:.2f}, gap {gap:+.2f}"
        workspace.say(f"{entry.name:22s} {entry.network:12s} {metric} {value:.2f}  {verdict}")
        if gap is not None and abs(gap) > TOLERANCE:
            off.append(entry.name)
    if not off:
        return Outcome()
    count = f"{len(off)} of {counted(len(entries), 'teacher')}"
    return Outcome(missing=f"{count} outside +-{TOLERANCE} of what is expected: {', '.join(off)}; mend entry or file")
