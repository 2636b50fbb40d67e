"""Runs as archives: packed for others, taken from others, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kd_methods.errors import UserError

from ..common.console import Outcome, counted
from . import completion, options
from .options import end, in_workspace

if TYPE_CHECKING:
    from ..common.workspace import Workspace
    from ..store.exchange import Also
    from .options import Variant

archive = click.Path(path_type=Path)


@click.command("export")
@click.argument("what", nargs=-1, required=True, metavar="TABLE|RUN...", shell_complete=completion.tables)
@click.argument("file", type=archive)
@click.option(
    "--students",
    "also",
    multiple=True,
    flag_value="students",
    help="Also the weights of the deployed networks, for `verify`.",
)
@click.option(
    "--unfinished",
    "also",
    multiple=True,
    flag_value="unfinished",
    help="Also stopped runs, with their checkpoints, to go on elsewhere.",
)
@options.stored
def export_runs(what: Sequence[str], file: Path, also: Sequence[Also], variant: Variant, output: Path) -> None:
    """Pack runs into FILE.zip, with checksums: those of tables, or runs by the names of their folders.

    A TABLE is a name, with --preset and the options that change a protocol, or a folder in tables/ of the output.
    """
    from ..config.table_spec import table_names
    from ..store import exchange, manifest

    if file.suffix != ".zip":
        raise UserError(f"export {' '.join(what)} {file}: the last word names the archive, and ends in .zip")
    tables, runs = [], []
    for word in what:
        if word in [*manifest.table_folders(output), *table_names()] or word.endswith((".yaml", ".yml")):
            tables.append(variant.folder_in(output, word))
        else:
            runs.append(word)
    if not tables:
        variant.check_unused("would say which variant of a table, and none is named: name one")
    exported = exchange.export(output, file, tables, runs, also)
    left = f"{counted(exported.left_out, 'cell')} without a result left out" if exported.left_out else ""
    networks = f", {exported.students} with their network" if exported.students else ""
    begun = f", {counted(exported.begun, 'unfinished run')}" if exported.begun else ""
    end(Outcome(f"{file}: {counted(exported.runs, 'run')}{networks}{begun}\nsha256 {exported.sha256}", left))


@click.command("import")
@click.argument("file", type=archive)
@options.output
def import_runs(file: Path, output: Path) -> None:
    """Take the runs of an archive into the store, if it is what was written; what is here stays as it is."""
    from ..store.exchange import import_

    merged = import_(file, output)
    students = f", {counted(merged.students, 'network')} added to them" if merged.students else ""
    text = f"{file}: {counted(len(merged.added), 'run')} taken, {merged.same} in the store{students}"
    if merged.begun:
        text += f"\nunfinished, to go on with the command of their table: {', '.join(merged.begun)}"
    if merged.tables:
        text += f"\ntables that show more: {', '.join(merged.tables)}"
    end(Outcome(text, merged.missing))


@click.command()
@click.argument("file", type=archive)
@click.option("--mend", is_flag=True, help="Of an output folder: set aside what is damaged instead; its table runs it.")
@in_workspace
def verify(workspace: Callable[[], Workspace], file: Path, mend: bool) -> None:
    """Evaluate the students of an archive (or of an output folder) here, and compare with what their runs claim."""
    place = workspace()
    from ..driver import verify as verifying

    end(verifying.mend(file, place) if mend else verifying.report(file, place))


@click.command()
@click.argument("run", required=False)
@click.option(
    "--to", "form", required=True, metavar="FORM", shell_complete=completion.forms,
    help=f"For which library: {', '.join(completion.FORMS)}.",
)  # fmt: skip
@click.option(
    "--all", "table", metavar="TABLE", help="Every finished run of a table, each in a folder of its name.",
    shell_complete=completion.tables,
)  # fmt: skip
@click.option("--folder", type=archive, help="Where to; by default converted/FORM/RUN in the output.")
@options.variant
@in_workspace
def convert(
    workspace: Callable[[], Workspace],
    run: str | None,
    form: str,
    table: str | None,
    folder: Path | None,
    variant: Variant,
) -> None:
    """Write the network of a finished RUN as other libraries open it, with a card.

    RUN is the name of its folder, or how that begins, or TABLE/ROW/PAIR/sSEED as TABLE-runs.csv has it. The card says
    what the network is, what it measures and what to cite. --preset and the options that change a protocol say
    which TABLE.
    """
    if (run is None) == (table is None):
        raise UserError("convert takes a RUN, or --all TABLE")
    if run is not None:
        variant.check_unused("would say which variant of a table, and a RUN is one cell of one: name --all TABLE")
    place = workspace()
    from ..driver import convert as converting

    if table is not None:
        table_folder = variant.folder_in(place.output, table)
        end(
            converting.convert_all(
                table_folder, form, folder or place.output / "converted" / form / table_folder, place
            )
        )
    elif run is not None:
        target = folder or place.output / "converted" / form / run
        click.echo(f"{target}: {', '.join(converting.convert(run, form, target, place))}")


COMMANDS = (export_runs, import_runs, verify, convert)
