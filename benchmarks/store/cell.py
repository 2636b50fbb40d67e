"""A cell: the smallest thing that is computed, stored and counted, and its identity."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kd_methods.errors import Damaged

from ..common.files import digest
from ..config.protocol import Protocol
from ..config.recipe import Optimizer

SCHEMA = 1
"""Part of every identity. Raised when the training code changes what a cell means."""


def kind_of(task: str) -> str:
    """A task's name without the place of its data (``folder:PATH``), for identities: they have the data's digest."""
    return task.partition(":")[0]


@dataclass(frozen=True)
class TeacherRef:
    """Which teacher: a weights file by its digest, or the cell that trains it.

    Exactly one of ``weights`` and ``cell`` is set. ``mean`` and ``std`` are the teacher's own normalisation. ``entry``
    is what the teacher is called, for people; it is no part of the identity.
    """

    network: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: str = ""
    cell: str = ""
    entry: str = ""

    def identity(self) -> dict[str, Any]:
        source = {"weights": self.weights} if self.weights else {"cell": self.cell}
        return {"network": self.network, "mean": list(self.mean), "std": list(self.std), **source}


@dataclass(frozen=True)
class Cell:
    """(task, data, protocol, teacher, student, method and settings, seed), frozen.

    ``protocol`` is :meth:`benchmarks.config.protocol.Protocol.identity`, ``lr`` the student's own rate under it;
    ``settings`` are complete, defaults included. ``versions`` are those of the task and the networks; ``plugins`` maps
    what came from a user's file (as ``method:name``) to that file's digest. ``init``: the student starts from a choice
    of its teacher's layers; ``start``: from the weights of a network of ImageNet. The key names the run directory.
    """

    task: str
    data: str
    protocol: dict[str, Any]
    lr: float
    student: str
    method: str
    method_version: int
    settings: dict[str, Any]
    seed: int
    teacher: TeacherRef | None = None
    versions: dict[str, int] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)
    init: str = ""
    start: TeacherRef | None = None

    def __post_init__(self) -> None:
        if self.init and self.teacher is None:
            raise ValueError(f"a cell without a teacher starts from none (init {self.init})")

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> Cell:
        """The cell with an identity; its task has no place of data, and its teacher no name.

        Raises:
            Damaged: it has what no cell has, as one of a later version may.
        """
        fields = dict(identity)
        method = fields.pop("method")
        refs_of = [ref for name in ("teacher", "start") if (ref := identity.get(name))]
        known = [(fields, {"schema", *cls.__annotations__}), (method, {"name", "version", "settings"})]
        for given, names in [*known, *((ref, TeacherRef.__annotations__.keys()) for ref in refs_of)]:
            if odd := given.keys() - names:
                raise Damaged(f"its cell has '{min(odd)}', which is nothing of this version's; is it of a later one?")
        refs: dict[str, Any] = {
            name: TeacherRef(**ref) for name in ("teacher", "start") if (ref := fields.pop(name, None))
        }
        named = {"method": method["name"], "method_version": method["version"], "settings": method["settings"]}
        del fields["schema"]
        try:
            return cls(**fields, **named, **refs)
        except (TypeError, ValueError) as error:
            raise Damaged(f"its cell is none of this version's ({error})") from None

    def under(self, protocol: Protocol) -> Protocol:
        """The protocol of the cell's group as the cell has it: with the optimiser and the learning rate of its own.

        The rows of a group share everything else of a protocol.
        """
        optimizer = Optimizer.model_validate({**self.protocol["optimizer"], "lr": self.lr})
        return protocol.model_copy(update={"optimizer": optimizer, "lr_by_student": {}, "lr_alone": None})

    def identity(self) -> dict[str, Any]:
        """Everything that the result depends on, as JSON values."""
        return {
            "schema": SCHEMA,
            "task": kind_of(self.task),
            "data": self.data,
            "protocol": self.protocol,
            "lr": self.lr,
            "teacher": self.teacher.identity() if self.teacher else None,
            "student": self.student,
            "method": {"name": self.method, "version": self.method_version, "settings": self.settings},
            "seed": self.seed,
            "versions": self.versions,
            "plugins": self.plugins,
            **({"init": self.init} if self.init else {}),
            **({"start": self.start.identity()} if self.start else {}),
        }

    @functools.cached_property
    def key(self) -> str:
        """sha256 of the canonical identity."""
        return digest(self.identity())

    @property
    def label(self) -> str:
        """How logs call the cell."""
        source = f"{self.teacher.network}-" if self.teacher else ""
        optimizer = self.protocol.get("optimizer", {}).get("name", "sgd")
        method = f"{self.method}({optimizer})" if optimizer == "dot" else self.method
        return f"{method}/{source}{self.student}/s{self.seed}"

    @property
    def trained_first(self) -> set[str]:
        """Keys of the cells that train what this one learns from, or starts from."""
        return {ref.cell for ref in (self.teacher, self.start) if ref and ref.cell}

    def group(self) -> str:
        """Cells of one group share the teacher's pass over the same batches; their optimisers may differ."""
        teacher = self.teacher.identity() if self.teacher else None
        shared = {key: value for key, value in self.protocol.items() if key != "optimizer"}
        return digest([kind_of(self.task), self.data, shared, teacher, self.seed])


def grouped(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells by their group, in the order of each group's first one."""
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.group()].append(cell)
    return list(groups.values())
