"""YAML files of the suite: read, merged, and checked against their models. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from kd_methods.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "tables"

Model = TypeVar("Model", bound=BaseModel)

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # five times as fast, where PyYAML was built with it


class Strict(BaseModel):
    """Unknown keys are errors; values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


def load(model: type[Model], path: Path, kind: str) -> Model:
    raw = read_yaml(path)
    if parent := raw.pop("extends", None):
        folder = TABLES if kind == "tables" else TABLES / kind
        base = folder / f"{parent}.yaml"
        if not base.is_file():
            raise UserError(f"{path} extends '{parent}', but there is no {base}")
        raw = merged(load(model, base, kind).model_dump(mode="python", exclude_unset=True), raw)
    return validate(model, raw, path)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, mappings within them merged likewise."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _check_keys(node: yaml.Node | None) -> None:
    """A key that stands twice in a mapping is an error: the first one would be lost."""
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _check_keys(child)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key '{key.value}' is there twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add((key.tag, key.value))
            _check_keys(value)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        UserError: the file is not YAML (its line is named), or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        loader = _Loader(text)
        node = loader.get_single_node()
        _check_keys(node)
        raw = loader.construct_document(node) if node else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: {error.problem or 'malformed YAML'}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} line 1: expected a mapping of keys to values")
    return raw


def validate(model: type[Model], raw: Any, path: Path, prefix: Iterable[str | int] = ()) -> Model:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")  # a misspelt key, not its absence
        location = [*prefix, *first["loc"]]
        key = ".".join(map(str, location))
        line = _line_of(path, location)
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key"
        raise UserError(f"{path} line {line}: {key}: {message}") from None


def _line_of(path: Path, location: Iterable[str | int]) -> int:
    """The line of the deepest part of ``location`` that is written in the file."""
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
    line = 1
    for key in location:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(key)]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line
