"""What finished runs say: verdicts, where a number comes from, what to cite. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options

if TYPE_CHECKING:
    from ..config.protocol import Changes


@click.command()
@click.argument("table")
@options.preset
@options.changes
@options.settings
@options.output
def cite(table: str, preset: str, changes: Changes, settings: str, output: Path) -> None:
    """BibTeX of what TABLE rests on: its methods, data sets and networks, and this suite."""
    from ..config.protocol import load_protocol
    from ..config.table_spec import load_table
    from ..report import citations
    from ..store import manifest

    spec = load_table(table)
    chosen = spec.preset(preset)
    protocol = load_protocol(chosen.protocol)
    if shown := manifest.load(output, options.stem_of(table, preset, changes, settings)):
        found = citations.of_manifest(shown)
    else:
        pairs, rows = chosen.pairs or (), chosen.methods or ()
        found = citations.cited(
            [(row.method, str(row.optimizer.get("name", ""))) for row in rows],
            [pair.task or chosen.task or protocol.task for pair in pairs],
            [network for pair in pairs for network in (pair.teacher, pair.student)] + [row.student for row in rows],
        )
    click.echo(citations.bibtex(found))


COMMANDS = (cite,)
