"""Which run's folder is which: a line for each run of a table, with its readable name. Imports no torch."""

from __future__ import annotations

from ..common.files import csv_text
from ..store import names
from ..store.manifest.shapes import Manifest
from ..store.runs import Store


def as_csv(shown: Manifest, table_folder: str, store: Store) -> str:
    """CSV of a table's runs.

    Args:
        shown: the table, whole.
        table_folder: its name in the store.
        store: has the runs.

    Returns:
        The columns ``name`` (by which commands know the run), ``folder`` in ``runs/``, and ``state``.
    """
    runs = names.of_table(shown)
    facts = store.facts(runs.values())
    lines = [
        [f"{table_folder}/{name}", store.run(key).path.name, facts[key].status["state"]] for name, key in runs.items()
    ]
    return csv_text([["name", "folder", "state"], *lines])
