"""What is published: values, and settings where they are not the defaults; from tables/published/. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

from kd_methods.registry import combined_methods
from kd_methods.strict import Strict

from ..common.files import read_csv
from ..common.places import PUBLISHED
from ..common.yaml_files import merged, read_yaml, validate
from .changed_rows import flat
from .table_spec import without_task


class PublishedLine(Strict):
    """A line of a file of tables/published/: what a source gives for a method on a pair.

    A pair whose id names a task names the metric, too.
    """

    method: str
    pair: str
    value: float
    std: float | None = None
    metric: str = "top1"
    source: str
    epoch_rule: Literal["last", "best", "unknown"]
    protocol: str
    teacher: str
    note: str = ""


@functools.cache
def literature(name: str) -> list[PublishedLine]:
    """The lines of a file of tables/published/.

    Raises:
        UserError: there is none, or a line is malformed (file and line are named).
    """
    return read_csv(PUBLISHED / name, PublishedLine)


class PairSettings(Strict):
    """Settings of a method that are published for some pairs, or for all, under one recipe.

    ``also`` are other recipes under which papers quote the method with them. ``our_choice``: nobody published them, or
    those that are named; they are marked as our choice wherever they show.
    """

    recipe: str
    also: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    values: dict[str, Any]
    source: str
    our_choice: bool | tuple[str, ...] = False

    def chosen(self) -> frozenset[str]:
        """The keys that are our choice, those of methods of a combination with the method's name before them."""
        keys = frozenset(flat(self.values))
        if isinstance(self.our_choice, tuple):
            return keys & frozenset(self.our_choice)
        return keys if self.our_choice else frozenset()


def pair_settings(method: str, pair: str, recipe: str) -> Mapping[str, Any]:
    """What is published for a method on a pair, where it differs from the method's defaults.

    A combination has its own published settings above those of its methods.
    """
    published: Mapping[str, Any] = {}
    for prefix, entry in pair_entries(method, pair, recipe):
        published = merged(published, {prefix[:-1]: entry.values} if prefix else entry.values)
    return published


def pair_entries(method: str, pair: str, recipe: str) -> list[tuple[str, PairSettings]]:
    """The entries that give a method's settings on a pair, the last of those that give one of them counts.

    Each with what stands before its keys in the method's flat settings: of a method in a combination ``"kd."``.
    """
    names = [*((f"{one}.", one) for one in combined_methods(method)), ("", method)]
    return [(prefix, entry) for prefix, name in names if (entry := pair_entry(name, pair, recipe))]


def pair_entry(method: str, pair: str, recipe: str) -> PairSettings | None:
    """The entry of tables/published/settings.yaml for a method on a pair, if there is one."""
    known = all_pair_settings().get(method, ())
    entries = (entry for entry in known if recipe in (entry.recipe, *entry.also))
    names = {pair, without_task(pair)}  # on one task, and on any
    return next((entry for entry in entries if names & set(entry.pairs) or not entry.pairs), None)


@functools.cache
def all_pair_settings() -> dict[str, tuple[PairSettings, ...]]:
    """Published settings by method (tables/published/settings.yaml)."""
    path = PUBLISHED / "settings.yaml"
    raw = read_yaml(path)
    return {
        method: tuple(validate(PairSettings, entry, path, (method, i)) for i, entry in enumerate(entries))
        for method, entries in raw.items()
    }


@functools.cache
def absent_methods() -> dict[str, dict[str, str]]:
    """What others ship and the suite lacks (tables/published/absent.yaml): who ships it, by name and by reason."""
    return read_yaml(PUBLISHED / "absent.yaml")
