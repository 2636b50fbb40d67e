"""Readable names of runs, whose folders are named by hashes: TABLE/ROW/PAIR/sSEED. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from . import manifest
from .manifest.shapes import Manifest

TEACHER = "teacher/"
"""How the names of runs that train a table's teachers begin."""


def of_table(shown: Manifest) -> dict[str, str]:
    """The keys of a table's runs by their names in it: ``kd/resnet56-resnet20/s0``, ``teacher/resnet56-resnet20/s0``.

    What is not for the name of a folder, such as the slash in a configuration's, is a ``_``.
    """
    keys = {_name(f"{TEACHER}{{}}/s0", c.key): c.teacher.cell for c in shown.columns if c.teacher.cell}
    for cell in shown.cells:
        keys[_name(f"{{}}/{{}}/s{cell.seed}", cell.row, cell.column)] = cell.key
    return keys


def _name(form: str, *words: str) -> str:
    return form.format(*(_folder_name(word) for word in words))


def _folder_name(word: str) -> str:
    """A row's or a column's key as the name of one folder: never none, nor the folder above."""
    return re.sub(r"[^\w.+=@:,-]", "_", word) if word.strip(".") else "_" * max(len(word), 1)


def key_of(output: Path, name: str) -> str:
    """The key of the run with a name, TABLE/ROW/PAIR/sSEED; empty where there is none."""
    table_folder, _, in_table = name.partition("/")
    if table_folder not in manifest.table_folders(output):
        return ""
    return of_table(manifest.existing(output, table_folder)).get(in_table, "")
