"""How a cell is made: complete settings, versions, and digests of what is not the suite's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_methods import registry

from .. import networks
from ..config.protocol import Protocol
from ..tasks import get_task
from .cell import Cell, TeacherRef, kind_of


def make_cell(
    protocol: Protocol,
    data: str,
    method: str,
    student: str,
    seed: int,
    teacher: TeacherRef | None,
    values: dict[str, Any],
    plugins: Mapping[str, str],
    init: str = "",
) -> Cell:
    """A cell with complete settings, and with the digests of the plugins and the checkpoints that it uses."""
    task = get_task(protocol.task)
    used = dict.fromkeys((student, *((teacher.network,) if teacher else ())))
    versions = {f"network:{name}": networks.version(name) for name in used} | {
        f"task:{kind_of(task.name)}": task.version
    }
    uses = {
        *versions,
        *(f"network source:{networks.source_of(name)}" for name in used),
        *(f"method:{part}" for part in registry.parts(method)),
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
        settings=registry.settings(method, values).model_dump(mode="json"),
        seed=seed,
        teacher=teacher,
        versions=versions,
        plugins={name: digest for name, digest in plugins.items() if name in uses}
        | {f"network:{name}": networks.weights_digest(name) for name in used if networks.weights_digest(name)},
        init=init,
    )


def student_cell(network: str, protocol: Protocol, data_root: Path, plugins: Mapping[str, str]) -> Cell:
    """The cell that trains a network alone, with seed 0."""
    fingerprint = get_task(protocol.task).fingerprint(data_root, protocol)
    return make_cell(protocol, fingerprint, "student", network, 0, None, {}, plugins)
