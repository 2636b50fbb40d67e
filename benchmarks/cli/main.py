"""The command line: one group, and how the process ends. Nothing here imports torch before a command needs it."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from kd_methods.errors import UserError, unknown

from ..common.console import patient_streams, say
from ..common.files import write_text
from ..common.places import PROGRAM
from . import completion, cost, exchange, measure, results, show, tables, teachers
from .options import OUTPUT


class Commands(click.Group):
    """A word that is no command is the name of a table to reproduce. An empty word is a mistake: a variable not set."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for before, word in zip(["", *args], args, strict=False):
            option = before if before.startswith("--") else word.removesuffix("=") if word.startswith("--") else ""
            if not word or (word.startswith("--") and word.endswith("=")):
                what = option or f"the word after {before or PROGRAM}"
                raise UserError(f"{what} '' names nothing; leave it out for what is usual, or say what is meant")
        return super().parse_args(ctx, args)

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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from ..config.table_spec import table_names

        tables = [CompletionItem(name) for name in table_names() if name.startswith(incomplete)]
        completions = [*tables, *super().shell_complete(ctx, incomplete)]
        return completions or [CompletionItem(incomplete, type="file")]  # a table of one's own


HELP = f"""Reproduce a table of the knowledge-distillation literature with your own runs.

\b
{PROGRAM} table2 --preset demo    minutes on a laptop, ends with the LaTeX table
{PROGRAM} table2 --preset short   the real data, a few epochs
{PROGRAM} table2                  the paper's protocol; prints the expected hours first

Exit codes: 0 all that was asked for is there; 1 it is not: cells failed, diverged or were left out (a method that
is not for a pair is no failure), or nobody took the output; 2 a mistake in the command, a file or the set-up;
3 an error that was not foreseen, with a log file; 130 stopped, the same command goes on.
"""


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from ..report.citations import suite

        click.echo(f"kd-benchmark {suite()['version']}")
        context.exit()


@click.group(
    help=HELP, cls=Commands, options_metavar="", subcommand_metavar="TABLE|COMMAND [OPTIONS]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def cli() -> None:
    pass


for _family in (tables, results, exchange, show, measure, cost):
    for _command in _family.COMMANDS:
        cli.add_command(_command)
cli.add_command(teachers.teachers)


def main() -> None:
    """Entry point. The exit code is explained in ``HELP``."""
    if completion.answered(cli):
        return
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
    output: Path | None = context.meta.get(OUTPUT) if context else None
    for temporary in (False, True):
        with contextlib.suppress(UserError, OSError):  # there may be no folder for temporary files either
            folder = Path(tempfile.gettempdir()) if temporary else output
            if folder and folder.is_dir():
                write_text(folder / name, text)
                return folder / name
    return Path("nowhere, as no folder can be written to")
