"""Teachers' files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kd_methods.errors import UserError

from . import options
from .options import end, floats, in_workspace

if TYPE_CHECKING:
    from ..common.workspace import Workspace


@click.group()
def teachers() -> None:
    """Teacher checkpoints: what is known, what is installed, and whether it measures what it should."""


@teachers.command("list")
@options.checkpoints
def teachers_list(checkpoints: Path) -> None:
    """All entries, with their expected accuracy and whether a file is installed."""
    from ..teachers.zoo import Zoo

    zoo = Zoo(checkpoints)
    for name, entry in sorted(zoo.entries.items()):
        state = "installed" if zoo.path(entry).is_file() else "not installed"
        expected = "unknown" if entry.expected is None else f"{entry.expected:.2f} ({entry.expected_source})"
        click.echo(f"{name:22s} {entry.network:12s} {entry.task:10s} {state:14s} expects {expected}")


@teachers.command("add")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--network", help="Architecture; default: NAME.")
@click.option("--task", default="cifar100", show_default=True)
@click.option(
    "--mean", help="Normalisation, comma-separated; default: that of known weights, else that of the task's protocol."
)
@click.option("--std", help="As --mean.")
@click.option("--expect", type=float, help="What verify must measure, in percent.")
@click.option("--labels", help="Of a text encoder's folder: its classes in its own order, by the task's names.")
@click.option("--weights", "which", default="", help="Which state dict of FILE, such as state_dict_ema.")
@options.checkpoints
@options.plugin
def teachers_add(
    name: str, file: Path, network: str | None, task: str, mean: str | None, std: str | None, expect: float | None,
    labels: str | None, which: str, checkpoints: Path, plugins: Sequence[Path],
) -> None:  # fmt: skip
    """Install FILE as teacher NAME: a state dict, plain or under a name such as model or state_dict.

    A fine-tuned text encoder is installed from the folder that transformers saved it in.

    NAME is your own name, or an entry of `teachers list` that the file is a copy of.
    """
    from ..common.plugins import load
    from ..tasks import get_task
    from ..teachers.verification import usual_protocol
    from ..teachers.zoo import Zoo, make_entry

    load(plugins)
    named_task = get_task(task)
    usual = next((protocol for protocol in [usual_protocol(task)] if protocol.task == named_task.name), None)
    if named_task.modality == "images" and usual is None and not (mean and std):
        raise UserError(f"no protocol knows the normalisation of task '{task}'; give --mean and --std")
    entry = make_entry(
        name=name, network=network or name, task=named_task.name,
        mean=floats("--mean", mean) or (usual.mean if usual else ()),
        std=floats("--std", std) or (usual.std if usual else ()),
        expected=expect, expected_source="given" if expect is not None else "",
    )  # fmt: skip
    zoo = Zoo(checkpoints)
    if shipped := zoo.shipped.get(name):
        given = {"--network": network, "--mean": mean, "--std": std, "--expect": expect}
        given["--task"] = None if task in ("cifar100", shipped.task) else task
        if said := [option for option, value in given.items() if value is not None]:
            raise UserError(f"'{name}' is a shipped entry, which says that itself: leave out {', '.join(said)}")
    added = zoo.add(entry, file, bool(mean or std), which, click.echo, options.words("--labels", labels))
    expected = (
        "unknown (give --expect)" if added.expected is None else f"{added.expected:.2f} ({added.expected_source})"
    )
    metric = get_task(added.task).metric
    click.echo(f"added teacher '{name}' ({added.network} on {added.task}); expected {metric} {expected}")
    for replaced in zoo.replaced:
        click.echo(f"it replaces the file that was there, which is kept as {replaced}")
    published = [e.name for e in zoo.shipped.values() if (e.network, e.task) == (added.network, added.task)]
    if published and not added.origin:
        click.echo(f"if the file is a copy of a published one, add it under the entry's name: {', '.join(published)}")


@teachers.command("fetch")
@click.argument("names", nargs=-1)
@options.checkpoints
def teachers_fetch(names: Sequence[str], checkpoints: Path) -> None:
    """Download teachers by name; without names, those of the published tables (CRD).

    Names are those of `teachers list`, or weights of a library for ImageNet: timm:NAME.TAG, torchvision:NAME.VERSION.
    """
    from ..teachers.zoo import Zoo

    zoo = Zoo(checkpoints)
    chosen = [zoo.wanted(name) for name in names] or [e for e in zoo.shipped.values() if e.origin == "crd"]
    zoo.fetch(chosen, click.echo)
    for replaced in zoo.replaced:
        click.echo(f"another file that was there is kept as {replaced}")


@teachers.command("train")
@click.argument("network")
@click.option("--protocol", "protocol_name", default="cifar100-crd240", show_default=True)
@options.epochs
@options.threads
@in_workspace
def teachers_train(workspace: Callable[[], Workspace], network: str, protocol_name: str, epochs: int | None) -> None:
    """Train NETWORK as a teacher (seed 0); tables under the same protocol use it from the store."""
    from ..common.process.children import check_started_once

    check_started_once()
    place = workspace()
    from ..driver.planning.checks import checked_protocol
    from ..driver.stages import train_teacher

    end(train_teacher(network, checked_protocol(protocol_name).for_teachers({"epochs": epochs}), place))


@teachers.command("verify")
@click.argument("names", nargs=-1)
@in_workspace
def teachers_verify(workspace: Callable[[], Workspace], names: Sequence[str]) -> None:
    """Measure installed teachers on the test set; fails if one is off by more than 0.1 points."""
    place = replace(workspace(), say=click.echo)
    from ..driver.engines import measured_by
    from ..teachers.verification import verify_teachers

    end(verify_teachers(names, place, measured_by(place)))
