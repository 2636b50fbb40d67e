"""The command line. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kd_methods.errors import UserError, unknown

from ..common.console import Outcome, patient_streams, say
from ..common.files import write_text

if TYPE_CHECKING:
    from ..config.protocol import Changes
    from ..driver.plan import Request
    from ..driver.reproduce import Options

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "./reproduce.sh"
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
preset = click.option(
    "--preset", default="paper", show_default=True,
    help="paper, short, demo, or another one of the table's (`list` names them).",
)  # fmt: skip
methods = click.option("--methods", help="Rows, comma-separated; default: the table's.")
pairs = click.option("--pairs", help="Columns (teacher-student), comma-separated; default: the table's.")
seeds = click.option("--seeds", help="Seeds, comma-separated; default: the preset's.")
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
    "--processes", type=click.IntRange(min=1), help="Detection: share each batch among N processes, one GPU each."
)
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

    return epochs(holdout(precision(accumulate(processes(with_changes)))))


class Commands(click.Group):
    """A word that is no command is the name of a table to reproduce."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from ..config.table_spec import table_names

        name = args[0]
        if name in self.commands:
            return super().resolve_command(ctx, args)
        if name in table_names() or name.endswith((".yaml", ".yml")):
            return "run", self.commands["run"], args
        raise unknown("table or command", name, [*table_names(), *self.commands])


class Reproduce(click.Command):
    """The command that is called by the name of a table."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(f"{PROGRAM} TABLE", "[OPTIONS]")


@click.group(
    cls=Commands, options_metavar="", subcommand_metavar="TABLE|COMMAND [OPTIONS]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip
def cli() -> None:
    """Reproduce a table of the knowledge-distillation literature with your own runs.

    \b
    ./reproduce.sh table2 --preset demo    minutes on a laptop, ends with the LaTeX table
    ./reproduce.sh table2 --preset short   the real data, a few epochs
    ./reproduce.sh table2                  the paper's protocol; prints the expected hours first

    Exit codes: 0 all that was asked for is there; 1 it is not: cells failed, diverged or were left out (a method that
    is not for a pair is no failure), or nobody took the output; 2 a mistake in the command, a file or the set-up;
    3 an error that was not foreseen, with a log file; 130 stopped, the same command goes on.
    """


@cli.command("run", cls=Reproduce, hidden=True)
@click.argument("table")
@preset
@methods
@pairs
@seeds
@changes
@settings
@click.option("--set", "overrides", multiple=True, metavar="METHOD.KEY=VALUE", help="Change a method's setting.")
@device
@data_root
@checkpoints
@output
@plugin
@click.option("--dry-run", is_flag=True, help="Print the plan, its arithmetic and its expected hours; run nothing.")
@click.option("--no-cost", is_flag=True, help="Leave out the measurement of what each row costs.")
@click.option("--similarity", is_flag=True, help="Plot over training how alike student's and teacher's blocks are.")
@click.option("--any-teacher", is_flag=True, help="Accept teachers that measure another accuracy than expected.")
def run_table(**arguments: Any) -> None:
    """Run what TABLE needs and is not in the store, and write the table (a name or a YAML file)."""
    request, options = _prepare(**arguments)
    from ..driver.reproduce import reproduce

    _end(reproduce(request, options))


@cli.command()
@click.argument("table")
@preset
@changes
@settings
@output
def render(table: str, preset: str, changes: Changes, settings: str, output: Path) -> None:
    """Write TABLE again from the store; nothing is run, neither data nor teachers are read."""
    from ..config.protocol import load_protocol
    from ..config.table_spec import load_table, stem
    from ..report.collect import render as written

    spec = load_table(table)
    usual = load_protocol(spec.preset(preset).protocol)
    changed = usual.changed(**changes)
    files, text = written(output, stem(spec.name, preset, usual, changed, settings == "uniform"))
    click.echo(text)
    for file in files:
        click.echo(file)


@cli.command("list")
def list_everything() -> None:
    """Tables with their presets, protocols, and methods by family."""
    from kd_methods.registry import FAMILIES, index

    from ..config.protocol import protocol_names
    from ..config.table_spec import load_table, table_names

    click.echo("tables (./reproduce.sh TABLE --preset PRESET)")
    for name in table_names():
        table = load_table(name)
        click.echo(f"  {name:22s} {table.title}; presets {', '.join(table.presets)}")
    click.echo("protocols\n  " + ", ".join(protocol_names()))
    click.echo("methods (./reproduce.sh show method NAME)")
    for family in FAMILIES:
        for entry in (entry for entry in index().values() if entry.family == family):
            click.echo(f"  {family:10s} {entry.name:16s} {entry.summary}")


@cli.command()
@click.argument("kind", type=click.Choice(["table", "protocol", "method", "methods"]))
@click.argument("name", default="")
@click.option("--pair", help="With a method: its extra parameters on this pair, teacher-student.")
@plugin
def show(kind: str, name: str, pair: str | None, plugins: Sequence[Path]) -> None:
    """Everything about a table, a protocol or a method; `methods` is the page of all methods."""
    from . import descriptions as views

    if plugins:
        from ..common import plugins as loader

        loader.load(plugins)
    if (kind == "methods") == bool(name):
        raise UserError(f"show {kind} takes {'no' if name else 'a'} name")
    if kind == "methods":
        click.echo(views.methods_page())
        return
    text = {"table": views.table, "protocol": views.protocol, "method": views.method}[kind](name)
    if pair and kind == "method":
        text += f"\n\n{views.parameters(name, pair)}"
    click.echo(text)


@cli.group()
def teachers() -> None:
    """Teacher checkpoints: what is known, what is installed, and whether it measures what it should."""


@teachers.command("list")
@checkpoints
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
@click.option("--weights", "which", default="", help="Which state dict of FILE, such as state_dict_ema.")
@checkpoints
@plugin
def teachers_add(
    name: str, file: Path, network: str | None, task: str, mean: str | None, std: str | None, expect: float | None,
    which: str, checkpoints: Path, plugins: Sequence[Path],
) -> None:  # fmt: skip
    """Install FILE as teacher NAME: a state dict, plain or under a name such as model or state_dict.

    A fine-tuned text encoder is installed from the folder that transformers saved it in.

    NAME is your own name, or an entry of `teachers list` that the file is a copy of.
    """
    from ..common.plugins import load
    from ..config.protocol import load_protocol, protocol_names
    from ..tasks import get_task
    from ..teachers.zoo import Zoo, make_entry

    load(plugins)
    images = get_task(task).inputs == "images"
    protocols = (load_protocol(known) for known in protocol_names())
    usual = next((protocol for protocol in protocols if protocol.task == task), None)
    if images and usual is None and not (mean and std):
        raise UserError(f"no protocol knows the normalisation of task '{task}'; give --mean and --std")
    entry = make_entry(
        name=name, network=network or name, task=task,
        mean=_floats(mean) or (usual.mean if usual else ()), std=_floats(std) or (usual.std if usual else ()),
        expected=expect, expected_source="given" if expect is not None else "",
    )  # fmt: skip
    added = Zoo(checkpoints).add(entry, file, bool(mean or std), which, click.echo)
    expected = (
        "unknown (give --expect)" if added.expected is None else f"{added.expected:.2f} ({added.expected_source})"
    )
    click.echo(f"added teacher '{name}' ({added.network} on {task}); expected {get_task(task).metric} {expected}")


@teachers.command("fetch")
@click.argument("names", nargs=-1)
@checkpoints
def teachers_fetch(names: Sequence[str], checkpoints: Path) -> None:
    """Download teachers by name; without names, those of the published tables (CRD).

    Names are those of `teachers list`, or weights of a library for ImageNet: timm:NAME.TAG, torchvision:NAME.VERSION.
    """
    from ..teachers.zoo import Zoo

    zoo = Zoo(checkpoints)
    chosen = [zoo.wanted(name) for name in names] or [e for e in zoo.shipped.values() if e.origin == "crd"]
    zoo.fetch(chosen, click.echo)


@teachers.command("train")
@click.argument("network")
@click.option("--protocol", "protocol_name", default="cifar100-crd240", show_default=True)
@epochs
@device
@data_root
@checkpoints
@output
@plugin
def teachers_train(
    network: str, protocol_name: str, epochs: int | None, device: str, data_root: Path, checkpoints: Path, output: Path,
    plugins: Sequence[Path],
) -> None:  # fmt: skip
    """Train NETWORK as a teacher (seed 0); tables under the same protocol use it from the store."""
    from ..common.environment import device as choose
    from ..common.plugins import load
    from ..config.protocol import load_protocol
    from ..driver.reproduce import train_teacher
    from ..teachers.zoo import Zoo

    registered = load(plugins)
    protocol = load_protocol(protocol_name).for_teachers({"epochs": epochs})
    _end(train_teacher(network, protocol, Zoo(checkpoints), data_root, output, choose(device), registered))


@teachers.command("verify")
@click.argument("names", nargs=-1)
@device
@data_root
@checkpoints
@plugin
def teachers_verify(
    names: Sequence[str], device: str, data_root: Path, checkpoints: Path, plugins: Sequence[Path]
) -> None:
    """Measure installed teachers on the test set; fails if one is off by more than 0.1 points."""
    from ..common.environment import device as choose
    from ..common.plugins import load
    from ..driver.reproduce import verify_teachers
    from ..teachers.zoo import Zoo

    load(plugins)
    _end(verify_teachers(Zoo(checkpoints), names, data_root, choose(device), click.echo))


@cli.command("profile")
@click.argument("method")
@click.argument("pair")
@click.option("--batch-size", default=64, show_default=True)
@device
@output
@plugin
def profile_of(method: str, pair: str, batch_size: int, device: str, output: Path, plugins: Sequence[Path]) -> None:
    """A training step of METHOD on PAIR (teacher-student): its parts, memory over it, operators, a Chrome trace."""
    from ..common.plugins import load
    from ..cost import profile as profile_cell
    from ..cost.setup import Suite

    load(plugins)
    text, files = profile_cell.report(method, pair, Suite(device, batch_size), output)
    click.echo(text)
    for file in files:
        click.echo(file)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--accuracy", type=click.Path(path_type=Path), help="A table's .csv: plot its accuracies against cost.")
@output
def table6(file: Path, accuracy: Path | None, output: Path) -> None:
    """The cost table and its plots, from FILE that `pytest benchmarks/ --benchmark-json FILE` wrote."""
    from ..report import cost_suite as suite

    folder = output / "tables" / "table6"
    files = suite.write(suite.read(file), folder, accuracy)
    for text in (path for path in files if path.suffix == ".md"):
        click.echo(text.read_text(encoding="utf-8"))
    for path in files:
        click.echo(path)


@cli.command()
@click.argument("table")
@preset
@methods
@pairs
@seeds
@epochs
@device
@data_root
@checkpoints
@output
@plugin
def probe(
    table: str, preset: str, methods: str | None, pairs: str | None, seeds: str | None, epochs: int | None,
    device: str, data_root: Path, checkpoints: Path, output: Path, plugins: Sequence[Path],
) -> None:  # fmt: skip
    """Linear probe of TABLE's finished students: classes read off the last stage's first block."""
    from ..common.environment import device as choose
    from ..common.plugins import load
    from ..driver import probe as probes
    from ..driver.plan import Request
    from ..teachers.zoo import Zoo

    request = Request(
        table=table, preset=preset, methods=words(methods), pairs=words(pairs), seeds=_integers(seeds),
        changes={"epochs": epochs}, data_root=data_root, plugins=load(plugins), plugin_files=tuple(plugins),
    )  # fmt: skip
    outcome, file = probes.report(request, Zoo(checkpoints), output, choose(device))
    _end(replace(outcome, text=f"{outcome.text}\n{file}"))


@cli.command("quality")
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
    help="Images of a class for its spectrum.",
)
@click.option("--self-pairs", is_flag=True, help="S with every image's pair with itself, as the public code has it.")
@device
@data_root
@checkpoints
@output
@plugin
def quality_of(
    teacher: str, protocol_name: str, layers: int, entropy_norm: Any, samples: int, per_class: int, self_pairs: bool,
    device: str, data_root: Path, checkpoints: Path, output: Path, plugins: Sequence[Path],
) -> None:  # fmt: skip
    """Knowledge quality (S, I, E, Q) of every layer of TEACHER, an installed or trained one; a table and a plot."""
    from ..config.protocol import load_protocol

    protocol = load_protocol(protocol_name)
    from ..analysis import layer_quality as quality
    from ..common.environment import device as choose
    from ..common.plugins import load
    from ..teachers.zoo import Zoo

    named = load(plugins)
    measure = quality.Measure(layers, entropy_norm, samples, per_class, self_pairs)
    where = Zoo(checkpoints), data_root, output, choose(device)
    text, files = quality.report(teacher, protocol, *where, say, named, measure)
    click.echo(text)
    for file in files:
        click.echo(file)


@cli.command()
@data_root
@checkpoints
@output
def doctor(data_root: Path, checkpoints: Path, output: Path) -> None:
    """Versions, hardware, data and teachers at hand, and what can be run here."""
    from .doctor import report

    for line in report(data_root, checkpoints, output):
        click.echo(line)


def _prepare(
    table: str, preset: str, methods: str | None, pairs: str | None, seeds: str | None, changes: Changes,
    settings: str, overrides: Sequence[str],
    device: str, data_root: Path, checkpoints: Path, output: Path, plugins: Sequence[Path], dry_run: bool,
    no_cost: bool, similarity: bool, any_teacher: bool,
) -> tuple[Request, Options]:  # fmt: skip
    from ..config.protocol import load_protocol
    from ..config.table_spec import load_table

    # What can be wrong in the YAML is said before torch is imported.
    load_protocol(load_table(table).preset(preset).protocol)
    from ..common.environment import device as choose
    from ..common.plugins import load
    from ..driver.plan import Request
    from ..driver.reproduce import Options

    request = Request(
        table=table, preset=preset, methods=words(methods), pairs=words(pairs), seeds=_integers(seeds),
        changes=changes, uniform=settings == "uniform",
        overrides=tuple(overrides), data_root=data_root, plugins=load(plugins), plugin_files=tuple(plugins),
    )  # fmt: skip
    options = Options(
        output=output, checkpoints=checkpoints, device=choose(device), dry_run=dry_run, any_teacher=any_teacher,
        costs=not no_cost, similarity=similarity,
    )  # fmt: skip
    return request, options


def words(text: str | None) -> tuple[str, ...]:
    """What stands between the commas."""
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _integers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words(text))
    except ValueError:
        raise UserError(f"--seeds {text}: give whole numbers, for example --seeds 0,1,2") from None


def _floats(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words(text))
    except ValueError:
        raise UserError(f"'{text}' is no list of numbers; write for example 0.5071,0.4867,0.4408") from None


def _end(outcome: Outcome) -> None:
    """Print a command's text; where something is missing of what was asked for, say what, and exit with 1."""
    if outcome.text:
        click.echo(outcome.text)
    if outcome.missing:
        say(f"not complete: {' '.join(outcome.missing.split())}")
        click.get_current_context().exit(1)


def main() -> None:
    """Entry point. The exit code is told in :func:`cli`'s help."""
    with patient_streams() as lost:
        code = _exit_code(sys.argv[1:])
        if sys.stdout:
            sys.stdout.flush()
        for stream, reason in lost.items():
            code = code or _fail(f"{stream}: {reason}; not everything was shown, and what was saved is kept", 1)
    sys.exit(code)


def _exit_code(arguments: Sequence[str]) -> int:
    context = None
    try:
        with cli.make_context(PROGRAM, list(arguments)) as context:
            cli.invoke(context)
        return 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.ctx.get_help() if error.ctx else "")
        return 2
    except click.UsageError as error:
        return _fail(f"{error.format_message()} (see --help)", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except UserError as error:
        return _fail(str(error), 2)
    except (KeyboardInterrupt, click.Abort) as stop:
        say(str(stop) or "stopped; the same command goes on from what was saved")
        return 130
    except BaseException as error:  # a mistake of the suite's own, or of a plugin's: sys.exit is one
        what = f"{type(error).__name__}: {str(error)[:300]}"
        file = _log(error, context)
        return _fail(f"{what} (not foreseen; what was saved is kept, the same command goes on; details: {file})", 3)


def _fail(message: str, code: int) -> int:
    say(f"error: {' '.join(message.split())}")
    return code


def _log(error: BaseException, context: click.Context | None) -> Path:
    """Write an error's traceback to a file in the output folder, or where there is none to one for temporary files."""
    name = f"error-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}.log"
    text = f"{sys.argv}\n" + "".join(traceback.format_exception(error))
    own: Path | None = context.meta.get(OUTPUT) if context else None
    for folder in (*([own] if own and own.is_dir() else []), Path(tempfile.gettempdir())):
        with contextlib.suppress(UserError):
            write_text(folder / name, text)
            return folder / name
    return Path("nowhere, as no folder can be written to")
