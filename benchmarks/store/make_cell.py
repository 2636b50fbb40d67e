"""How a cell is made: complete settings, versions, and digests of what is not the suite's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from kd_methods import registry

from .. import networks
from ..config.protocol import Protocol
from ..tasks import get_task
from .cell import Cell, TeacherRef, kind_of


@dataclass(frozen=True)
class Distillation:
    """How a student is taught.

    method    by name; ``student`` trains it alone
    teacher   whose outputs the method sees, or whose layers the student starts from
    settings  where they differ from the method's defaults
    init      the choice of the teacher's layers that the student starts from; empty for random weights
    """

    method: str
    teacher: TeacherRef | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    init: str = ""


def make_cell(
    protocol: Protocol,
    data: str,
    student: str,
    distillation: Distillation,
    seed: int = 0,
    plugins: Mapping[str, str] = MappingProxyType({}),
) -> Cell:
    """A cell with complete settings, and with the digests of the plugins and the checkpoints that it uses.

    Args:
        protocol: the recipe, on the cell's task.
        data: the fingerprint of the task's data.
        student: the network that is trained.
        distillation: how it is taught.
        seed: of everything random.
        plugins: what the user's files registered (``method:NAME``), with the files' digests.

    Raises:
        UserError: an unknown name, or a setting that the method does not have.
    """
    task, method, teacher = get_task(protocol.task), distillation.method, distillation.teacher
    used = dict.fromkeys((student, *((teacher.network,) if teacher else ())))
    versions = {f"network:{name}": networks.version(name) for name in used} | {
        f"task:{kind_of(task.name)}": task.version
    }
    uses = {
        *versions,
        f"task source:{kind_of(task.name)}",
        *(f"network source:{networks.source_of(name)}" for name in used),
        *(f"method:{name}" for name in registry.plain_methods(method)),
        f"optimizer:{protocol.optimizer.name}",
        f"schedule:{protocol.schedule}",
    }
    return Cell(
        task=task.name,
        data=data,
        protocol=protocol.identity(),
        lr=protocol.lr(student, taught=registry.get(method).needs_teacher),
        student=student,
        method=method,
        method_version=registry.card(method).version,
        settings=registry.settings(method, dict(distillation.settings)).model_dump(mode="json"),
        seed=seed,
        teacher=teacher,
        versions=versions,
        plugins={name: digest for name, digest in plugins.items() if name in uses}
        | {f"network:{name}": digest for name in used if (digest := networks.weights_digest(name))},
        init=distillation.init,
    )


def student_cell(network: str, protocol: Protocol, data: str, plugins: Mapping[str, str]) -> Cell:
    """The cell that trains a network alone, with seed 0, on the data with a fingerprint."""
    return make_cell(protocol, data, network, Distillation("student"), plugins=plugins)
