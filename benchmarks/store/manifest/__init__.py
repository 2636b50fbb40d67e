"""A table's manifest, plan.json: which cells it shows. With the store it determines the table completely.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from kd_methods.errors import UserError

from ...common.files import locked
from .. import documents
from .earlier import upgraded
from .merging import merge
from .shapes import Manifest


def path(output: Path, table_folder: str) -> Path:
    """Where a table's manifest lies."""
    return output / "tables" / table_folder / "plan.json"


def load(output: Path, table_folder: str) -> Manifest | None:
    """A table's manifest, or None where nothing was ever planned under that name.

    Raises:
        Damaged: it is not what was written; file and place are named.
    """
    remedy = "move it away and run the table again; of what was run before, it shows the rows that are run then"
    return documents.read(path(output, table_folder), Annotated[Manifest, BeforeValidator(upgraded)], remedy)


def save(output: Path, table_folder: str, new: Manifest, say: Callable[[str], None] = lambda line: None) -> Manifest:
    """Merge a plan into the table's manifest and write it; of several processes none loses another's rows.

    ``say`` gets a line for what the table shows elsewhere or no longer.
    """
    with locked(path(output, table_folder).parent):
        shown, lines = merge(load(output, table_folder), new)
        documents.write(path(output, table_folder), shown.model_dump(mode="json"))
    for line in lines:
        say(line)
    return shown


def existing(output: Path, table_folder: str) -> Manifest:
    """A table's manifest.

    Raises:
        UserError: nothing was ever planned under that name.
        Damaged: it is not what was written.
    """
    if loaded := load(output, table_folder):
        return loaded
    known = ", ".join(table_folders(output)) or "none"
    raise UserError(f"no table '{table_folder}' in {output} (there: {known}); run it first")


def table_folders(output: Path) -> list[str]:
    """The folders of the tables of a store."""
    return sorted(path.parent.name for path in (output / "tables").glob("*/plan.json"))


def adopt(output: Path, table_folder: str, theirs: Manifest) -> tuple[Manifest | None, Manifest]:
    """Let a table show what it shows elsewhere, as far as that goes together; what is here stays.

    Returns:
        What it showed before, and what it shows now.
    """
    with locked(path(output, table_folder).parent):
        ours = load(output, table_folder)
        joined = merge(theirs, ours).manifest if ours else theirs
        if joined != ours:
            documents.write(path(output, table_folder), joined.model_dump(mode="json"))
    return ours, joined
