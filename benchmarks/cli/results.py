"""What finished runs say: verdicts, where a number comes from, what to cite. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kd_methods.errors import UserError

from ..common.console import counted
from . import completion, options

if TYPE_CHECKING:
    from .options import Variant


@click.command()
@options.table
@options.stored
def cite(table: str, variant: Variant, output: Path) -> None:
    """BibTeX of what TABLE rests on: its methods, data sets and networks, and this suite."""
    from ..config.protocol import load_protocol
    from ..config.table_spec import load_table
    from ..report import citations
    from ..store import manifest

    if shown := manifest.load(output, variant.folder_in(output, table)):
        entries = citations.of_manifest(shown)
    else:
        chosen = load_table(table).preset(variant.preset)
        pairs, rows, protocol = chosen.pairs or (), chosen.methods or (), load_protocol(chosen.protocol)
        papers = citations.cited(
            [(row.method, str(row.optimizer.get("name", ""))) for row in rows],
            [pair.task or chosen.task or protocol.task for pair in pairs],
            [network for pair in pairs for network in (pair.teacher, pair.student)] + [row.student for row in rows],
        )
        entries = citations.under(papers, protocol.name, protocol.optimizer.name)
    click.echo(citations.bibtex(entries))


@click.command()
@click.argument("table", required=False, shell_complete=completion.tables)
@options.stored
def verdicts(table: str | None, variant: Variant, output: Path) -> None:
    """Which published values were reproduced: of TABLE, or of every table in the store."""
    from ..report import verdicts as judging

    table_folders = variant.folders_in(output, table)
    every: list[judging.Verdict] = []
    for table_folder in table_folders:
        verdicts_of_table = judging.of_table(output, table_folder)
        every += verdicts_of_table
        if not verdicts_of_table:
            click.echo(f"{table_folder}: no published value stands beside what was run")
            continue
        click.echo(f"{table_folder}\n{judging.text(verdicts_of_table)}\n")
        for file in judging.write(verdicts_of_table, output, table_folder):
            click.echo(file)
    if table is None:
        click.echo(f"{counted(len(table_folders), 'table')}: {judging.summary(every)}")


@click.command()
@options.table
@click.argument("row")
@click.argument("pair")
@options.stored
def explain(table: str, row: str, pair: str, variant: Variant, output: Path) -> None:
    """Where the number of ROW on PAIR in TABLE comes from: settings, teacher, runs, and the command for each again."""
    from ..report import explain as explaining
    from ..report.formats import explanation_text

    table_folder = variant.folder_in(output, table)
    file = table if table.endswith((".yaml", ".yml")) else ""
    click.echo(explanation_text.text(explaining.explain(output, table_folder, row, pair, file)))


@click.command()
@click.argument("table", required=False, shell_complete=completion.tables)
@click.option(
    "--level",
    type=click.Choice(["cell", "epoch", "cost", "verdict"]),
    default="cell",
    show_default=True,
    help="A line for what.",
)
@click.option("--format", "form", type=click.Choice(["csv", "json", "parquet"]), default="csv", show_default=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@options.stored
def data(table: str | None, variant: Variant, output: Path, out: Path, **asked: Any) -> None:
    """TABLE, or every table in the store, as data: every value in a typed column."""
    from ..report import records

    table_folders = variant.folders_in(output, table)
    table_folder = "" if table is None else table_folders[0]
    count = records.write(out, asked["form"], output, table_folder, asked["level"])
    click.echo(f"{out}: {counted(count, 'line')}")


@click.command()
@click.argument("tables", nargs=-1, metavar="[TABLE...]", shell_complete=completion.tables)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the pages, empty or with a site."
)
@click.option(
    "--store", "stores", type=click.Path(path_type=Path, file_okay=False), multiple=True,
    help="Output folder to show in place of --output; given more than once, their finished runs as one store.",
)  # fmt: skip
@options.stored
def site(tables: Sequence[str], out: Path, stores: Sequence[Path], variant: Variant, output: Path) -> None:
    """Write static pages of TABLEs, or of every table in the store: sortable, each number a link to its runs.

    They work from a disk (open index.html) and ask for nothing from elsewhere.
    """
    from ..report.site import pages
    from ..store import exchange

    with exchange.merged(stores or (output,)) as store:
        asked = {variant.folder_in(store, table): table for table in tables}
        files = {name: table if table.endswith((".yaml", ".yml")) else "" for name, table in asked.items()}
        shown = files or dict.fromkeys(variant.folders_in(store, None), "")
        if not shown:
            places = ", ".join(map(str, stores or (output,)))
            raise UserError(f"{places} has no table; run one first, or name the store with --output or --store")
        written = pages.write(store, shown, out)
    click.echo(f"{out / 'index.html'}: {counted(len(shown), 'table')}, {counted(len(written), 'file')}")


COMMANDS = (verdicts, explain, cite, data, site)
