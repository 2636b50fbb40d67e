"""What there is: lists, descriptions, and this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from kd_methods.errors import UserError

from ..common.console import Outcome, counted
from ..common.places import PROGRAM
from . import options


@click.command("list")
def list_everything() -> None:
    """Tables with their presets, protocols, and methods by family."""
    from kd_methods.registry import FOLDERS, index

    from ..config.protocol import protocol_names
    from ..config.table_spec import load_table, table_names

    click.echo(f"tables ({PROGRAM} TABLE --preset PRESET)")
    for name in table_names():
        table = load_table(name)
        click.echo(f"  {name:22s} {table.title}; presets {', '.join(table.presets)}")
    click.echo("protocols\n  " + ", ".join(protocol_names()))
    click.echo(f"methods ({PROGRAM} show method NAME)")
    for folder in FOLDERS:
        for entry in (entry for entry in index().values() if entry.folder == folder):
            click.echo(f"  {folder:10s} {entry.name:16s} {entry.summary}")


@click.command()
@click.argument("kind", type=click.Choice(["table", "protocol", "method", "methods", "keys", "scale"]))
@click.argument("name", default="")
@click.option("--pair", help="With a method: its extra parameters on this pair, teacher-student.")
@options.plugin
def show(kind: str, name: str, pair: str | None, plugins: Sequence[Path]) -> None:
    """Everything about a table, a protocol or a method; `methods` is the page of all methods, `keys` that of all YAML.

    `scale` counts tables 1 and 2 in full, which takes minutes.
    """
    from . import descriptions as views

    if plugins:
        from ..common import plugins as loader

        loader.load(plugins)
    if pair is not None and kind != "method":
        raise UserError(f"--pair is for show method, not for show {kind}")
    if (kind in ("methods", "keys", "scale")) == bool(name):
        raise UserError(f"show {kind} takes {'no' if name else 'a'} name")
    if kind == "methods":
        click.echo(views.methods_page())
        return
    if kind == "keys":
        from . import yaml_keys

        click.echo(yaml_keys.page())
        return
    if kind == "scale":
        from ..driver.planning import scale

        for line in scale.page():
            click.echo(line)
        return
    text = {"table": views.table, "protocol": views.protocol, "method": views.method}[kind](name)
    if pair is not None:
        text += f"\n\n{views.parameters(name, pair)}"
    click.echo(text)


@click.command()
@options.data_root
@options.checkpoints
@options.output
@click.option("--check", is_flag=True, help="Train every method two steps on the device and on the CPU, and compare.")
@options.device
@options.methods
def doctor(data_root: Path, checkpoints: Path, output: Path, check: bool, device: str, methods: str | None) -> None:
    """Versions, hardware, data and teachers at hand, and what can be run here; or whether a device computes right."""
    if check:
        from ..suites.device_check import findings

        wrong = 0
        for finding in findings(device, options.words("--methods", methods)):
            click.echo(finding)
            wrong += finding.wrong
        options.end(Outcome(missing=f"{counted(wrong, 'check')} went wrong" if wrong else ""))
        return
    if device != "auto" or methods:
        raise UserError("--device and --methods are for doctor --check")
    from .doctor import report

    for line in report(data_root, checkpoints, output):
        click.echo(line)


COMMANDS = (list_everything, show, doctor)
