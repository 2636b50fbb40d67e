"""Running and writing tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kd_methods.errors import UserError

from ..common.console import Outcome, say
from ..common.places import PROGRAM
from . import options
from .options import end, in_workspace

if TYPE_CHECKING:
    from ..common.workspace import Workspace
    from ..driver.execution.crew import Crew
    from ..report import Page
    from .options import Variant


class Reproduce(click.Command):
    """The command that is called by the name of a table."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(f"{PROGRAM} TABLE", "[OPTIONS]")


@click.command("run", cls=Reproduce, hidden=True)
@options.table
@options.preset
@options.methods
@options.pairs
@options.seeds
@options.changes
@options.settings
@options.page
@click.option(
    "--set", "overrides", multiple=True, metavar="METHOD.KEY=VALUE",
    help="Beside a row one of its own with this setting changed; --methods METHOD:KEY=VALUE is that row alone.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan, its FLOPs and its expected hours; run nothing.")
@click.option(
    "--device-speed", metavar="TFLOPS|CARD", default="",
    help="With --dry-run: the hours on --workers other devices (each so many as --processes says), "
    "by what each sustains, or by a card's name (a100, …).",
)  # fmt: skip
@click.option("--no-cost", is_flag=True, help="Leave out the measurement of what each row costs.")
@click.option("--similarity", is_flag=True, help="Plot over training how alike student's and teacher's blocks are.")
@click.option("--any-teacher", is_flag=True, help="Accept teachers that measure another accuracy than expected.")
@click.option("--shard", metavar="I/N", help="Only every N-th group of cells, from the I-th on: for arrays of jobs.")
@options.trackers
@options.crew
@in_workspace
def run(
    workspace: Callable[[], Workspace],
    crew: Callable[[], Crew],
    page: Page,
    dry_run: bool,
    device_speed: str,
    no_cost: bool,
    similarity: bool,
    any_teacher: bool,
    shard: str | None,
    trackers: tuple[str, ...],
    **asked: Any,
) -> None:
    """Run what TABLE needs and is not in the store, and write the table (a name or a YAML file)."""
    from ..common.process.children import check_started_once
    from ..config.protocol import load_protocol
    from ..config.table_spec import load_table

    # What can be wrong in the YAML is said before torch is imported.
    table = load_table(asked["table"])
    load_protocol(table.preset(asked["preset"]).protocol)
    chosen_shard, followers = options.shard(shard), options.tracker_classes(trackers)
    if not shard:
        check_started_once()
    if device_speed and not dry_run:
        raise UserError(f"--device-speed {device_speed} is for plans: add --dry-run")
    if dry_run:
        say(table.heading(asked["preset"]))  # importing torch takes a second or more
    place, hands = workspace(), crew()
    from ..driver.execution.jobs import Shard
    from ..driver.planning.plan import Request
    from ..driver.reproduce import Options, reproduce

    request = Request(
        table=asked["table"], preset=asked["preset"], changes=asked["changes"], uniform=asked["settings"] == "uniform",
        overrides=tuple(asked["overrides"]), **options.chosen(asked),
    )  # fmt: skip
    how = Options(
        dry_run, device_speed, any_teacher, not no_cost, similarity, hands, Shard(*chosen_shard), page, followers
    )
    end(reproduce(request, place, how))


@click.command()
@options.table
@options.methods
@options.pairs
@options.seeds
@options.page
@click.option(
    "--from", "source", metavar="reproduced|PATH",
    help="Out of an archive that `export` wrote (a file or a folder of them), or of those that ship with the suite.",
)  # fmt: skip
@options.stored
def render(table: str, variant: Variant, page: Page, source: str | None, output: Path, **asked: Any) -> None:
    """Write TABLE again from the store, all of it or the rows, columns and seeds that are named, in their order.

    Nothing is run, neither data nor teachers are read.
    """
    from ..report.archived import archive, render_archive
    from ..report.collect import render as from_store
    from ..store.selection import Selection

    chosen = options.chosen(asked)
    wanted = Selection(chosen["methods"], chosen["pairs"], chosen["seeds"])
    if source is not None:
        name = variant.folder(table)
        written = render_archive(archive(source, name), name, output, wanted=wanted, page=page)
    else:
        name = variant.folder_in(output, table)
        written = from_store(output, name, wanted=wanted, page=page)
    end(Outcome("\n".join([written.text, *map(str, written.files)]), written.missing))


COMMANDS = (run, render)
