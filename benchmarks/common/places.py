"""Where the suite's own files lie, in a checkout and as an installed package. Imports nothing."""

from __future__ import annotations

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
