"""What the processes of a cell of detection have in hand. Imports nothing of mmdetection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...config.protocol import Protocol
from ...config.recipe import Detection
from ...store.cell import Cell
from ...store.runs import Run


@dataclass(frozen=True)
class DetectionJob:
    """What a process needs to know of its cell.

    teacher     the file with the teacher's weights
    rank        which of the processes it is that share the cell; the first one writes to the run
    rendezvous  the file by which they find each other
    """

    cell: Cell
    protocol: Protocol
    data_root: Path
    device: str
    threads: int
    plugin_files: tuple[Path, ...]
    path: Path
    teacher: Path | None = None
    rank: int = 0
    rendezvous: Path | None = None

    @property
    def run(self) -> Run:
        return Run(self.path, self.cell.key)

    @property
    def detection(self) -> Detection:
        """The protocol's part on detection."""
        assert self.protocol.detection is not None
        return self.protocol.detection


@dataclass(frozen=True, kw_only=True)
class EvaluationJob(DetectionJob):
    """As :class:`DetectionJob`; ``file`` has the weights that are evaluated."""

    file: Path
