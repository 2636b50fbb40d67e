"""What methods compute once from a frozen teacher and the training images, kept by content."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_methods.contract import Outputs, TeacherPass
from kd_methods.errors import Damaged

from ..common.files import digest, locked, write_bytes, write_json
from ..common.seeding import seeded
from ..common.units import duration
from ..common.weights import read, to_bytes
from ..networks import NetworkView
from ..store.cell import Cell, TeacherRef, kind_of
from ..tasks import TaskData
from ..tasks.images import Normalisation
from .failures import Interrupted

BATCH = 250
LONG = 2000
"""Images from which on a pass reports its progress."""

EVERY = 20.0
"""Seconds between two lines about what is computed."""


class NotStored(Exception):
    """What a method prepares has not been computed yet."""


def identity(cell: Cell, teacher: TeacherRef) -> dict[str, Any]:
    """What a pass of a teacher over a cell's training images depends on, as JSON values.

    The cell need not have that teacher itself.
    """
    versions = (f"task:{kind_of(cell.task)}", f"network:{teacher.network}")
    return {
        "teacher": teacher.identity(),
        "task": kind_of(cell.task),
        "data": cell.data,
        "protocol": {name: cell.protocol.get(name) for name in ("holdout", "label_noise")}
        | {name: cell.protocol[name] for name in ("crops", "teacher_answers", "max_length") if cell.protocol.get(name)},
        "versions": {name: cell.versions[name] for name in versions},
        "plugins": {name: file for name, file in cell.plugins.items() if name in versions},
    }


@dataclass(frozen=True)
class StoredTeacherPass(TeacherPass):
    """See :class:`kd_methods.contract.TeacherPass`.

    Args:
        network: the frozen teacher.
        normalisation: how it wants its inputs.
        data: the training images.
        identity: what it depends on, see :func:`identity`.
        folder: where results are kept.
        say: takes lines about what is computed.
        stopping: whether the user asked to stop.
        lent_labels: the training set's, where a method is not to have the data's own tensor.
    """

    network: NetworkView
    normalisation: Normalisation
    data: TaskData
    identity: Mapping[str, Any]
    folder: Path
    say: Callable[[str], None]
    stopping: Callable[[], bool] = lambda: False
    lent_labels: Tensor | None = None
    last_line: list[float] = field(default_factory=lambda: [time.monotonic()], compare=False)

    @property
    def labels(self) -> Tensor:  # type: ignore[override]
        labels = self.data.info.labels if self.lent_labels is None else self.lent_labels
        assert labels is not None
        return labels if self.data.answered is None else labels[self.data.answered.to(labels.device)]

    def outputs(self, units: Iterable[str], indices: Tensor | None = None) -> Iterator[tuple[Outputs, Tensor]]:
        indices = torch.arange(len(self.labels)) if indices is None else indices
        if self.data.answered is not None:  # positions are those of the images that the teacher answers about
            indices = self.data.answered.nonzero()[:, 0].cpu()[indices]
        network, units = self.network.fold_batch_norms(), tuple(units)
        started = time.monotonic()
        for done, batch in enumerate(self.data.cleaned(indices, BATCH)):
            if self.stopping():
                raise Interrupted("stopped while a method was prepared; the same command goes on from here")
            if len(indices) > LONG:
                elapsed = duration(time.monotonic() - started)
                self.progress(f"{done * BATCH / len(indices):.0%} of {len(indices)} images, {elapsed}")
            with torch.no_grad():
                outputs = network(batch.as_taught().inputs(self.normalisation), at=units, fields=())
            yield batch.answer(outputs), batch.student().labels

    def progress(self, text: str) -> None:
        if time.monotonic() - self.last_line[0] > EVERY:
            self.last_line[0] = time.monotonic()
            self.say(f"    {text}")

    def stored(
        self, what: str, settings: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        key = {"what": what, "settings": dict(settings), **self.identity}
        path = self.folder / f"{digest(key)[:16]}.pt"
        # Also where it is in the store: what a method draws afterwards is the same in both cases.
        with seeded(self.data.device, 0, what):
            state = self._read(path)
            if state is None:
                # Workers on other seeds of a table ask for the same: one computes it, the others wait.
                with locked(self.folder, path.stem):
                    state = self._read(path) or self._computed(what, key, path, compute)
        return {name: value.to(self.data.device) for name, value in state.items()}

    def _computed(
        self, what: str, key: Mapping[str, Any], path: Path, compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        name = what.rpartition(" ")[0]
        self.say(f"  preparing {name} of {self.identity['teacher']['network']}")
        started = time.monotonic()
        state = {name: value.detach().cpu().contiguous() for name, value in compute().items()}
        write_json(path.with_suffix(".json"), key)
        write_bytes(path, to_bytes(state))
        self.say(f"  prepared {name} in {duration(time.monotonic() - started)}")
        return state

    def without_computing(self) -> StoredTeacherPass:
        """This pass where nothing is computed: asking for what is not in the store raises :class:`NotStored`."""
        return _StoredOnly(**vars(self))

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        if path.is_file():
            try:
                state = read(path)
                if isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values()):
                    return state
                raise Damaged(f"{path} does not hold what was prepared")
            except Damaged as error:
                self.say(f"{error}; computing it again")
        return None


class _StoredOnly(StoredTeacherPass):
    def outputs(self, units: Iterable[str], indices: Tensor | None = None) -> Iterator[tuple[Outputs, Tensor]]:
        raise NotStored
