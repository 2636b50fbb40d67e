"""A table out of an archive of runs, such as those that ship with the suite. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kd_methods.errors import UserError

from ..common.console import say
from ..common.files import read_bytes, write_bytes
from ..common.places import TABLES
from ..store import exchange, manifest
from ..store.selection import ALL, Selection
from .collect import Written, render
from .layouts.paper_table import PAPER, Page

SHIPPED = "reproduced"
"""By this name, and in this folder of tables/, the archives that ship with the suite are known."""


def archive(source: str, table_folder: str) -> Path:
    """The archive of a table: a file, or TABLE_FOLDER.zip in a folder, or among what ships with the suite.

    Raises:
        UserError: there is none.
    """
    place = TABLES / SHIPPED if source == SHIPPED else Path(source)
    if not place.is_dir():
        return place
    if not (file := place / f"{table_folder}.zip").is_file():
        known = ", ".join(sorted(path.stem for path in place.glob("*.zip"))) or "none"
        raise UserError(f"--from {source} has no archive of table {table_folder} (there: {known})")
    return file


def render_archive(
    file: Path,
    table_folder: str,
    output: Path,
    say: Callable[[str], None] = say,
    wanted: Selection = ALL,
    page: Page = PAPER,
) -> Written:
    """Write a table of an archive into ``reproduced/TABLE_FOLDER`` of an output folder; its store is left alone.

    Raises:
        Damaged: the archive is not what was written.
        UserError: it has no such table.
    """
    with exchange.opened(file) as folder:
        if table_folder not in (there := manifest.table_folders(folder)):
            raise UserError(f"{file} has no table {table_folder} (there: {', '.join(there) or 'none'}); name that")
        written = render(folder, table_folder, say, wanted, page)
        unpacked, target = manifest.path(folder, table_folder).parent, output / SHIPPED / table_folder
        copies = [target / made.relative_to(unpacked) for made in written.files]
        for made, copy in zip(written.files, copies, strict=True):
            write_bytes(copy, read_bytes(made))
    return written._replace(files=copies)
