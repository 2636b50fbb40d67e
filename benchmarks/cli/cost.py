"""What methods cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from . import options


@click.command("profile")
@click.argument("method")
@click.argument("pair")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@options.device
@options.output
@options.plugin
def profile_of(method: str, pair: str, batch_size: int, device: str, output: Path, plugins: Sequence[Path]) -> None:
    """A training step of METHOD on PAIR (teacher-student): its sections, memory over it, operators, a Chrome trace."""
    # Read when torch is imported: its allocator warns of what was there before the profiler looked.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from ..common.plugins import load
    from ..cost import profile as profile_cell
    from ..cost.setup import Suite

    load(plugins)
    text, files = profile_cell.report(method, pair, Suite(device, batch_size), output)
    click.echo(text)
    for file in files:
        click.echo(file)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--accuracy", type=click.Path(path_type=Path), help="A table's .csv: plot its accuracies against cost.")
@options.output
def table6(file: Path, accuracy: Path | None, output: Path) -> None:
    """The cost table and its plots, from FILE that `pytest benchmarks/ --benchmark-json FILE` wrote."""
    from ..report import cost_suite as suite

    folder = output / "tables" / "table6"
    files = suite.write(suite.read(file), folder, accuracy)
    for text in (path for path in files if path.suffix == ".md"):
        click.echo(text.read_text(encoding="utf-8"))
    for path in files:
        click.echo(path)


COMMANDS = (profile_of, table6)
