"""Where the suite's own files lie, in a checkout and as an installed package. Imports nothing of the suite."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""The suite's folder: ``benchmarks`` in a checkout, ``kdbench`` where it is installed."""

INSTALLED = (PACKAGE / "tables").is_dir()

PROGRAM = "kdbench" if INSTALLED else "./reproduce.sh"
"""How the command line is called."""

TABLES = (PACKAGE if INSTALLED else PACKAGE.parent) / "tables"
PUBLISHED = TABLES / "published"

ROOT = Path() if INSTALLED else PACKAGE.parent
"""Below it lie the default folders of data, teachers and results: the checkout, or else the current folder."""


def folders() -> dict[str, Path]:
    """The default folders of data, teachers and results by the names of their options."""
    variables = {"data_root": "KDBENCH_DATA", "checkpoints": "KDBENCH_CHECKPOINTS", "output": "KDBENCH_OUTPUT"}
    usual = {"data_root": ROOT / "data", "checkpoints": ROOT / "checkpoints", "output": ROOT / "results"}
    return {name: Path(os.environ.get(variables[name]) or folder) for name, folder in usual.items()}
