"""What a step holds in memory: the tensors of networks and cells, and a peak by what makes it up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from ..report.model import HELD
from ..training.loop import SharedTeacher
from ..training.student_run import StudentRun


def of_networks(networks: Iterable[nn.Module]) -> Iterator[Tensor]:
    """Parameters and buffers."""
    for network in networks:
        yield from network.parameters()
        yield from network.buffers()


def of_teacher(teacher: SharedTeacher | None) -> Iterator[Tensor]:
    """The teacher's weights, and the copy of them with folded batch-norms."""
    return of_networks([teacher.network, teacher.network.fold_batch_norms()] if teacher else [])


def of_cell(student_run: StudentRun) -> dict[str, list[Tensor]]:
    """Weights (of student and method, what the method registered, averages), gradients, the optimiser's state."""
    weights = list(of_networks((student_run.student, student_run.method)))
    averages = student_run.averages.values
    states = student_run.optimizer.state_dict()["state"].values()
    return {
        "weights": [*weights, *averages],
        "gradients": [tensor.grad for tensor in weights if tensor.grad is not None],
        "optimiser": [value for state in states for value in state.values() if isinstance(value, Tensor)],
    }


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory under tensors, each piece once."""
    pieces = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(pieces.values())


def split(peak: int | None, student_run: StudentRun, teacher: SharedTeacher | None) -> dict[str, int] | None:
    """A step's peak by :data:`HELD`, in bytes; the rest of it, which activations make up, is what the others leave.

    Args:
        peak: of a step, or None where it is not known.
        student_run: after a step, so that gradients and the optimiser's state are there.
        teacher: the network that it learns from, if any.
    """
    if peak is None:
        return None
    sizes = {name: size(tensors) for name, tensors in of_cell(student_run).items()} | {
        "teacher": size(of_teacher(teacher))
    }
    sizes["activations"] = max(0, peak - sum(sizes.values()))
    return {name: sizes[name] for name in HELD}
