"""YAML files of the suite: read, merged, and checked against their models. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from kd_methods.errors import UserError, unknown

from .files import NoFile, complaint, read_text

Model = TypeVar("Model", bound=BaseModel)

MAX_BYTES, MAX_DEPTH, MAX_VALUES = 2**20, 50, 100_000
"""Bounds of a file; ours have a tenth of it. Values count as often as aliases repeat them."""


class Misplaced(ValueError):
    """What a validator finds wrong at a place below what it validates."""

    def __init__(self, message: str, *place: str | int) -> None:
        super().__init__(message)
        self.place = place


_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Shelf:
    """The YAML files of one kind that ship with the suite, by name; ``pattern`` says whether in folders, too."""

    kind: str
    folder: Path
    pattern: str = "*.yaml"

    @functools.cached_property
    def files(self) -> dict[str, Path]:
        return {path.stem: path for path in self.folder.glob(self.pattern)}

    def names(self) -> list[str]:
        return sorted(self.files)

    def path(self, name: str) -> Path:
        """The file of a name.

        Raises:
            UserError: there is none.
        """
        if name not in self.files:
            raise unknown(self.kind, name, self.files)
        return self.files[name]

    def file(self, name: str) -> Path:
        """The file of a name, or of a path that ends as one."""
        return Path(name) if name.endswith(_SUFFIXES) else self.path(name)

    def holds(self, file: Path) -> bool:
        """Whether a file is one of these, by whatever path."""
        file = file.resolve()
        return file.stem in self.files and self.files[file.stem].resolve() == file

    def named(self, name: str, file: Path, *location: str | int) -> str:
        """What ``file`` names at ``location``, as :func:`load` takes it; what is the user's own lies beside that file.

        Raises:
            UserError: there is none of that name; the place is named.
        """
        try:
            if not name.endswith(_SUFFIXES):
                return self.path(name).stem
            if not (beside := file.parent / name).is_file():
                raise unknown(self.kind, name, self.files)
        except (UserError, OSError) as error:  # a name may be too long to be one
            raise UserError(f"{where(file, *location)}: {error}") from None
        return str(beside)


def load(
    model: type[Model],
    name: str,
    shelf: Shelf,
    combined: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]],
    above: tuple[Path, ...] = (),
) -> tuple[Model, Path]:
    """A file of a shelf by its name, or one of the user's by its path; and that path.

    ``combined`` makes one of what a file extends and of what it says itself, as :func:`merged` does; ``above`` are
    files that extend this one.

    Raises:
        UserError: there is none, or it is malformed (file and line are named).
    """
    path = shelf.file(name)
    try:
        raw = read_yaml(path)
    except NoFile:
        raise unknown(shelf.kind, name, shelf.names()) from None
    if "extends" in raw:
        try:
            extended = shelf.path(str(raw["extends"]))
        except UserError as error:
            raise UserError(f"{where(path, 'extends')}: {error}") from None
        if extended.resolve() in (chain := (*above, path.resolve())):
            raise UserError(f"{where(path, 'extends')}: '{raw['extends']}' extends this file in turn; name another one")
        base, _ = load(model, str(extended), shelf, combined, chain)
        raw = combined(base.model_dump(mode="python", exclude_unset=True), raw)
        del raw["extends"]
    return validate(model, raw, path), path


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, mappings within them merged likewise."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # five times as fast, where PyYAML was built with it


class _Loader(_Base):
    """PyYAML's safe loader within bounds, and every error of it with the line.

    Both composers of PyYAML, that in C too, call ``descend_resolver`` and ``ascend_resolver`` around every node. The
    one in C is not bounded otherwise, and ends the process where its stack is full.
    """

    def __init__(self, text: str) -> None:
        self.depth = self.values = 0
        self.open: set[int] = set()
        super().__init__(text)

    def descend_resolver(self, parent: yaml.Node | None, index: Any) -> None:
        self.depth += 1
        if parent and self.depth > MAX_DEPTH:
            raise _problem(parent, f"nested more than {MAX_DEPTH} deep")

    def ascend_resolver(self) -> None:
        self.depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # what Python says of numbers and dates that are none, by many types
            kind = node.tag.rpartition(":")[2]
            value = f"'{node.value[:40]}'" if isinstance(node.value, str) else "this"
            raise _problem(node, f"{value} is no {kind} ({error}); put it in quotes if it is text") from None

    def check(self, node: yaml.Node) -> None:
        """Raise for a key that is twice in a mapping (the first would be lost), and for what aliases make endless."""
        self.values += 1
        if self.values > MAX_VALUES:
            raise _problem(node, f"more than {MAX_VALUES:,} values, as its aliases repeat them")
        if id(node) in self.open:
            raise _problem(node, "an alias stands within what it repeats")
        if len(self.open) >= MAX_DEPTH:
            raise _problem(node, f"nested more than {MAX_DEPTH} deep, as its aliases repeat it")
        if isinstance(node, yaml.ScalarNode):
            return
        self.open.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for child in node.value:
                self.check(child)
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in seen:
                        raise _problem(key, f"the key '{key.value}' is there twice")
                    seen.add((key.tag, key.value))
                self.check(key)
                self.check(value)
        self.open.discard(id(node))


def _problem(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _parsed(text: str) -> tuple[Any, int, str]:
    """The value of a YAML text, or else the line and what is wrong there."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, 0, ""
        loader.check(node)
        return loader.construct_document(node), 0, ""
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return None, mark.line + 1 if mark else 1, error.problem or "malformed YAML"
    except UnicodeError:  # bytes of the command line
        return None, 1, "no UTF-8 text"
    except yaml.reader.ReaderError as error:
        line = text.encode().count(b"\n", 0, error.position) + 1
        return None, line, f"character 0x{error.character:02x}: {error.reason}"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        UserError: the file cannot be read, is not YAML (its line is named), or not a mapping.
    """
    raw, line, problem = _parsed(read_text(path, MAX_BYTES))
    if problem:
        raise UserError(f"{path} line {line}: {problem}")
    if not isinstance(raw, dict):
        raise UserError(f"{path} line 1: expected a mapping of keys to values")
    return raw


def read_value(text: str, what: str) -> Any:
    """One value as YAML writes it, such as a number or a list.

    Raises:
        UserError: ``what`` has none.
    """
    raw, _, problem = _parsed(text)
    if problem:
        raise UserError(f"{what}: '{text[:80]}' is not a value ({problem})")
    return raw


def validate(model: type[Model], raw: Any, path: Path, prefix: Iterable[str | int] = ()) -> Model:
    """A part of a YAML file as its model; ``prefix`` is where in the file it stands.

    Raises:
        UserError: it does not fit; file, line and key are named.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        place, message = complaint(error)
        raise UserError(f"{where(path, *prefix, *place)}: {message}") from None


def where(path: Path, *location: str | int) -> str:
    """A place in a YAML file in words: the line of the deepest part of ``location`` that is written there."""
    node = yaml.compose(read_text(path, MAX_BYTES), Loader=_Loader)
    line = 1
    for key in location:
        if isinstance(node, yaml.MappingNode):
            entries = [(k, v) for k, v in node.value if k.value == str(key)]
            if not entries:
                break
            line, node = entries[0][0].start_mark.line + 1, entries[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return f"{path} line {line}: {'.'.join(map(str, location))}"
