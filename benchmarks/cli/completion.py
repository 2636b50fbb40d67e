"""Completion in a shell: tables, presets, rows and columns, methods. Imports neither torch nor pandas."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, FishComplete, ZshComplete, add_completion_class, shell_complete

from kd_methods.errors import UserError

from ..common.places import PROGRAM

if TYPE_CHECKING:
    from ..config.table_spec import Preset, TableSpec

VARIABLE = "_KDBENCH_COMPLETE"
"""In it a shell asks for completion: ``eval "$(_KDBENCH_COMPLETE=bash_source kdbench)"``, or zsh or fish."""


NAME = PROGRAM.rpartition("/")[2]
"""The program as the shells know it: by its file's name they find what completes it, however its path is typed."""


@add_completion_class
class Zsh(ZshComplete):
    """Asks the program as it was typed, a path too; click's own script asks one that is on the shell's path."""

    source_template = ZshComplete.source_template.replace(
        "    (( ! $+commands[%(prog_name)s] )) && return 1\n", ""
    ).replace("zsh_complete %(prog_name)s)", "zsh_complete ${words[1]})")


@add_completion_class
class Fish(FishComplete):
    """Asks the program as it was typed; takes a list whole, which click's own script cuts at its first comma."""

    source_template = FishComplete.source_template.replace(
        "(commandline -t) %(prog_name)s)", "(commandline -t) (commandline -opc)[1])"
    ).replace('string split ","', 'string split -m 1 ","')


def answered(cli: click.Command) -> bool:
    """Answer a shell that asks for completion; whether one did."""
    asked = os.environ.get(VARIABLE)
    if not asked:
        return False
    with contextlib.suppress(UserError):  # of a word that is no table there is nothing to say
        shell_complete(cli, {}, NAME, VARIABLE, asked)
    return True


FORMS = ("hf", "mmdet", "onnx", "safetensors", "timm")
"""As what `convert` writes a student; the engines that plugins bring have others."""


def forms(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return _starting(incomplete, list(FORMS))


def _starting(incomplete: str, names: list[str]) -> list[CompletionItem]:
    """The names that begin so; behind a comma those that can follow."""
    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [CompletionItem(f"{before}{comma}{name}") for name in names if name.startswith(last) and name not in taken]


def tables(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Tables that ship with the suite; a file of one's own is completed by the shell."""
    from ..config.table_spec import table_names

    tables_named = _starting(incomplete, table_names())
    return tables_named or [CompletionItem(incomplete, type="file")]


def presets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Those of the table that stands in the command, or what every table has."""
    spec = _table(context)
    return _starting(incomplete, list(spec.presets) if spec else ["paper", "short", "demo"])


def methods(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The table's rows, then all methods."""
    from kd_methods.registry import index

    preset = _preset(context)
    rows = [row.id for row in (preset.methods or ())] if preset else []
    return _starting(incomplete, list(dict.fromkeys([*rows, *index()])))


def pairs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The table's columns."""
    preset = _preset(context)
    return _starting(incomplete, [pair.id for pair in (preset.pairs or ())] if preset else [])


def _table(context: click.Context) -> TableSpec | None:
    from ..config.table_spec import load_table

    # Before an option whose value is not there yet, click has not come to the arguments.
    name = context.params.get("table") or next(iter(context.args), None)
    with contextlib.suppress(UserError):
        return load_table(name) if name else None
    return None


def _preset(context: click.Context) -> Preset | None:
    spec = _table(context)
    with contextlib.suppress(UserError):
        return spec.preset(context.params.get("preset") or "paper") if spec else None
    return None
