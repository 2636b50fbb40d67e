"""Folders, device, plugins and the printing of lines: what is passed through all rooms. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .console import say
from .places import ROOT

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Workspace:
    """Folders, device and plugins of a command.

    data_root     the data sets
    checkpoints   the teachers' files
    output        the store and the tables
    device        where networks are trained
    plugins       what the user's files registered (``method:NAME``), with the files' digests
    plugin_files  these files, for processes that load them again
    say           prints a line for a person
    """

    device: torch.device
    data_root: Path = ROOT / "data"
    checkpoints: Path = ROOT / "checkpoints"
    output: Path = ROOT / "results"
    plugins: Mapping[str, str] = field(default_factory=dict)
    plugin_files: tuple[Path, ...] = ()
    say: Callable[[str], None] = say

    def portable(self) -> Workspace:
        """For another process, which loads the plugins' files itself and prints on its own streams."""
        return replace(self, plugins={}, say=say)

    def absolute(self) -> Workspace:
        """With folders and files that are the same for a process that works in another folder."""
        folders = {name: getattr(self, name).absolute() for name in ("data_root", "checkpoints", "output")}
        return replace(self, **folders, plugin_files=tuple(file.absolute() for file in self.plugin_files))
