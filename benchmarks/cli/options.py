"""Options that commands share, what their words mean, and how commands end. Imports no torch."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from kd_methods.errors import UserError

from ..common.console import Outcome, say
from ..common.machine import MOST_THREADS
from ..common.places import ROOT
from . import completion

if TYPE_CHECKING:
    from ..common.workspace import Workspace
    from ..config.protocol import Changes
    from ..driver.execution.crew import Crew
    from ..driver.trackers import Tracker

OUTPUT = "output folder"
"""Under this name a command's context keeps its output folder."""

data_root = click.option(
    "--data-root", type=click.Path(path_type=Path), envvar="KDBENCH_DATA", default=ROOT / "data",
    help="Folder of the data sets.",
)  # fmt: skip
checkpoints = click.option(
    "--checkpoints", type=click.Path(path_type=Path), envvar="KDBENCH_CHECKPOINTS", default=ROOT / "checkpoints",
    help="Folder of teacher files.",
)  # fmt: skip


def _noted(context: click.Context, _: click.Parameter, folder: Path) -> Path:
    """The output folder, kept where ``main`` finds it."""
    context.meta[OUTPUT] = folder
    return folder


output = click.option(
    "--output", type=click.Path(path_type=Path), envvar="KDBENCH_OUTPUT", default=ROOT / "results",
    help="Folder of the store and the tables.", callback=_noted,
)  # fmt: skip
device = click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
plugin = click.option(
    "--plugin", "plugins", multiple=True, type=click.Path(path_type=Path),
    help="Python file with a method, network or task of your own; may be given more than once.",
)  # fmt: skip
trackers = click.option(
    "--track", "trackers", multiple=True, metavar="TRACKER",
    help="Send settings, losses and metrics of each cell, epoch by epoch, to tensorboard or a plugin's tracker.",
)  # fmt: skip
preset = click.option(
    "--preset", default="paper", show_default=True,
    help="paper, short, demo, or another one of the table's (`list` names them).", shell_complete=completion.presets,
)  # fmt: skip
table = click.argument("table", shell_complete=completion.tables)
methods = click.option(
    "--methods", help="Rows, in this order, comma-separated; default: all.", shell_complete=completion.methods
)
pairs = click.option(
    "--pairs", help="Columns (teacher-student), in this order, comma-separated; default: all.",
    shell_complete=completion.pairs,
)  # fmt: skip
seeds = click.option("--seeds", help="Seeds, comma-separated; default: the preset's, of `render` all in the store.")
epochs = click.option("--epochs", type=int, help="Another length; milestones and warm-ups scale.")
holdout = click.option(
    "--holdout", type=click.IntRange(min=0), help="Test on N held-out training images (5000 for 45k/5k)."
)
precision = click.option(
    "--precision", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]), help="Another precision than the protocol's."
)
accumulate = click.option(
    "--accumulate", type=click.IntRange(min=1), help="Process each batch in N parts, where it does not fit."
)
processes = click.option(
    "--processes", type=click.IntRange(min=1), help="Share each batch among N processes, with a GPU each."
)
sync_bn = click.option("--sync-bn", is_flag=True, help="With --processes: batch statistics of all of them together.")
compiled = click.option("--compile", is_flag=True, help="Networks compiled by torch, for speed; a table of its own.")
_workers = click.option(
    "--workers", type=click.IntRange(min=1), envvar="KDBENCH_WORKERS",
    help="Train N groups at a time, each in a process; default: one for each GPU, or each core with 2 GiB.",
)  # fmt: skip
_per_gpu = click.option("--per-gpu", type=click.IntRange(min=1), default=1, help="How many workers share a GPU.")
_executor = click.option(
    "--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="Processes of this machine, or tasks of Ray (extra [cluster]).",
)  # fmt: skip
_address = click.option("--address", help="Of a Ray cluster, for example auto; default: Ray on this machine alone.")
threads = click.option(
    "--threads", type=click.IntRange(1, MOST_THREADS), envvar="OMP_NUM_THREADS", default=1, show_default=True,
    help="On a CPU, of each process that computes; results depend on it.",
)  # fmt: skip
settings = click.option(
    "--settings", type=click.Choice(["published", "uniform"]), default="published", show_default=True,
    help="Settings per pair as published, or each method's defaults on all pairs.",
)  # fmt: skip


def changes(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that change a protocol, handed to the command as one argument ``changes``."""

    @functools.wraps(command)
    def with_changes(**arguments: Any) -> Any:
        from ..config.protocol import Changes

        asked = {name: arguments.pop(name) for name in Changes.__annotations__}
        return command(changes=asked, **arguments)

    return epochs(holdout(precision(accumulate(processes(sync_bn(compiled(with_changes)))))))


def crew(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of who computes, handed to the command as one argument ``crew``, a function: it imports torch."""

    @functools.wraps(command)
    def with_crew(workers: int | None, per_gpu: int, executor: str, address: str | None, **arguments: Any) -> Any:
        if address and executor != "ray":
            raise UserError(f"--address {address} is that of a Ray cluster: add --executor ray")

        def made() -> Crew:
            from ..driver.execution.crew import Crew

            return Crew(workers, per_gpu, (address or "") if executor == "ray" else None)

        return command(crew=made, **arguments)

    return _workers(_per_gpu(threads(_executor(_address(with_crew)))))


def page(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a paper's table, handed to the command as one argument ``page``."""

    @click.option(
        "--style",
        type=click.Choice(["paper", "full"]),
        default="paper",
        show_default=True,
        help="LaTeX: a paper's table with all else in TABLE-appendix.tex, or both in one file.",
    )
    @click.option(
        "--published",
        type=click.Choice(["column", "none"]),
        default="column",
        show_default=True,
        help="LaTeX: the literature's values in a small column at each pair, or left out.",
    )
    @click.option("--highlight", metavar="ROW", default="", help="LaTeX: shade this row, your own.")
    @click.option("--costs", is_flag=True, help="LaTeX: throughput, its multiple of KD's and peak memory at each row.")
    @click.option("--ci", is_flag=True, help="Beside a mean its 95 % confidence interval, not the seeds' deviation.")
    @click.option("--rank", is_flag=True, help="A last column with each row's average rank.")
    @click.option("--figures", is_flag=True, help="Draw curves, accuracy against cost and more, as PDF and PNG.")
    @functools.wraps(command)
    def with_page(
        style: Any, published: Any, highlight: str, costs: bool, ci: bool, rank: bool, figures: bool, **arguments: Any
    ) -> Any:
        from ..report import Page

        shown = Page(
            published=published, highlight=highlight, costs=costs, style=style, intervals=ci, average_rank=rank,
            figures=figures,
        )  # fmt: skip
        return command(page=shown, **arguments)

    return with_page


def in_workspace(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of folders, device and plugins, handed to the command as one argument.

    ``workspace`` is a function, called once the command's other words are checked: it imports torch. It also sets the
    number of threads, of commands with that option.
    """

    @functools.wraps(command)
    def with_workspace(
        device: str, data_root: Path, checkpoints: Path, output: Path, plugins: Sequence[Path],
        threads: int | None = None, **arguments: Any,
    ) -> Any:  # fmt: skip
        # Before anything is read: files may name what a plugin brings.
        from ..common.plugins import load

        registered = load(plugins)

        def workspace() -> Workspace:
            from ..common.devices import device as chosen_device
            from ..common.workspace import Workspace

            if threads is not None:
                import torch

                torch.set_num_threads(threads)
            return Workspace(chosen_device(device), data_root, checkpoints, output, registered, tuple(plugins))

        return command(workspace=workspace, **arguments)

    return device(data_root(checkpoints(output(plugin(with_workspace)))))


@dataclass(frozen=True)
class Variant:
    """Which variant of a table is meant: its preset, and the options that make it another table."""

    preset: str
    changes: Changes
    settings: str
    given: tuple[str, ...] = ()
    """The options, as they are written, that were given and not left to what is usual."""

    def check_unused(self, why: str) -> None:
        """Raise UserError where an option was given that says nothing here, and ``why``."""
        if self.given:
            raise UserError(f"{', '.join(self.given)} {why}; else leave {'it' if len(self.given) == 1 else 'them'} out")

    def folder(self, table: str) -> str:
        """The name of the table's folder in a store."""
        from ..config.protocol import load_protocol
        from ..config.table_spec import load_table, table_folder_of

        spec = load_table(table)
        usual = load_protocol(spec.preset(self.preset).protocol)
        return table_folder_of(spec.name, self.preset, usual, usual.changed(**self.changes), self.settings == "uniform")

    def folder_in(self, output: Path, table: str) -> str:
        """As :meth:`folder`; ``table`` may also be the name of a folder of tables/ in the output."""
        from ..store import manifest

        if table not in manifest.table_folders(output):
            return self.folder(table)
        self.check_unused(
            f"would say which variant of a table, and '{table}' is the folder of one: give the table's name"
        )
        return table

    def folders_in(self, output: Path, table: str | None) -> list[str]:
        """The folder of a table as :meth:`folder_in`, or, where none is named, those of every table of the output."""
        from ..store import manifest

        if table is not None:
            return [self.folder_in(output, table)]
        self.check_unused("would say which variant of a table, and none is named: name one")
        return manifest.table_folders(output)


def variant(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which variant of a table is meant, handed to the command as one argument ``variant``."""

    @functools.wraps(command)
    def with_variant(**arguments: Any) -> Any:
        context = click.get_current_context()
        given = tuple(
            max(parameter.opts, key=len)
            for parameter in context.command.params
            if parameter.name in ("preset", "settings", *arguments["changes"])
            and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        )
        preset, changes, settings = (arguments.pop(name) for name in ("preset", "changes", "settings"))
        chosen = Variant(preset, changes, settings, given)
        return command(variant=chosen, **arguments)

    return preset(changes(settings(with_variant)))


def stored(command: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`variant`, the store's folder as ``output``, and plugins, for what finished runs say: nothing is run."""

    @functools.wraps(command)
    def with_plugins(plugins: Sequence[Path], **arguments: Any) -> Any:
        if plugins:  # the user's table may name what they bring
            from ..common.plugins import load

            load(plugins)
        return command(**arguments)

    return variant(output(plugin(with_plugins)))


def words(option: str, text: str | None) -> tuple[str, ...]:
    """What stands between the commas of an option; nothing where it is not given.

    Raises:
        UserError: the option is given and names nothing.
    """
    texts = re.split(r",(?![^\[]*\])", text or "")  # a setting's value may be a list
    chosen_words = tuple(word.strip() for word in texts if word.strip())
    if text is not None and not chosen_words:
        raise UserError(f"{option} '{text}' names nothing; leave it out for what is usual")
    return chosen_words


def seed_numbers(text: str | None) -> tuple[int, ...]:
    from ..config.table_spec import MAX_SEED

    try:
        seeds = tuple(int(word) for word in words("--seeds", text))
    except ValueError:
        seeds = (-1,)
    if not all(0 <= seed <= MAX_SEED for seed in seeds):
        raise UserError(f"--seeds {text}: give whole numbers from 0 to {MAX_SEED}, for example --seeds 0,1,2")
    return seeds


def shard(text: str | None) -> tuple[int, int]:
    """Which of how many parts of a plan; the first of one where it is not given."""
    index, _, count = ("1/1" if text is None else text).partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard {text}: write which part of how many, from --shard 1/8 to --shard 8/8")
    return int(index), int(count)


def tracker_classes(names: Sequence[str]) -> tuple[type[Tracker], ...]:
    """The trackers of some names, of which it is known that they can be used here."""
    from ..driver.trackers import TRACKERS

    chosen = tuple(TRACKERS.get(name) for name in dict.fromkeys(names))
    for tracker in chosen:
        tracker.check()
    return chosen


def floats(option: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words(option, text))
    except ValueError:
        raise UserError(f"{option} '{text}' is no list of numbers; write for example 0.5071,0.4867,0.4408") from None


def chosen(asked: Mapping[str, Any]) -> Any:
    """Rows, columns and seeds as a request has them."""
    names = {name: words(f"--{name}", asked[name]) for name in ("methods", "pairs")}
    return {**names, "seeds": seed_numbers(asked["seeds"])}


def end(outcome: Outcome) -> None:
    """Print a command's text; where something is missing of what was asked for, say what, and exit with 1."""
    if outcome.text:
        click.echo(outcome.text)
    if outcome.missing:
        say(f"not complete: {' '.join(outcome.missing.split())}")
        click.get_current_context().exit(1)
