"""Measurements of networks beside their accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from . import options
from .options import end, in_workspace

if TYPE_CHECKING:
    from ..common.workspace import Workspace


@click.command()
@options.table
@options.preset
@options.methods
@options.pairs
@options.seeds
@options.epochs
@options.threads
@in_workspace
def probe(workspace: Callable[[], Workspace], table: str, preset: str, epochs: int | None, **asked: Any) -> None:
    """Linear probe of TABLE's finished students: classes read off the last stage's first block."""
    place = workspace()
    from ..driver import probe as probes
    from ..driver.planning.plan import Request

    outcome, file = probes.report(
        Request(table=table, preset=preset, changes={"epochs": epochs}, **options.chosen(asked)), place
    )
    end(replace(outcome, text=f"{outcome.text}\n{file}"))


@click.command("quality")
@click.argument("teacher")
@click.option("--protocol", "protocol_name", default="cifar100-crd240", show_default=True, help="Task, data and split.")
@click.option("--layers", type=click.IntRange(min=1), default=4, show_default=True, help="How many are chosen.")
@click.option(
    "--entropy-norm",
    type=click.Choice(["ln5", "lnN"]),
    default="ln5",
    show_default=True,
    help="What the entropy in I is divided by: as the public code, or the logarithm of the samples per class.",
)
@click.option("--samples", type=click.IntRange(min=20), default=5000, show_default=True, help="Images for S and E.")
@click.option(
    "--per-class",
    type=click.IntRange(min=2),
    default=500,
    show_default=True,
    help="Images of a class for its spectrum; 50 is published for CNN teachers on Tiny-ImageNet.",
)
@click.option(
    "--self-pairs/--no-self-pairs", default=True, show_default=True,
    help="S with every image's pair with itself, as the public code has it.",
)  # fmt: skip
@options.threads
@in_workspace
def quality_of(
    workspace: Callable[[], Workspace], teacher: str, protocol_name: str, layers: int, entropy_norm: Any,
    samples: int, per_class: int, self_pairs: bool,
) -> None:  # fmt: skip
    """Knowledge quality (S, I, E, Q) of every layer of TEACHER, an installed or trained one; a table and a plot."""
    from ..config.protocol import load_protocol

    protocol = load_protocol(protocol_name)
    place = workspace()
    from ..analysis import layer_quality as quality

    measured = quality.Measure(layers, entropy_norm, samples, per_class, self_pairs)
    text, files = quality.report(teacher, protocol, place, measured)
    click.echo(text)
    for file in files:
        click.echo(file)


COMMANDS = (probe, quality_of)
