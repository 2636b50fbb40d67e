"""docs/yaml.md: every key that a table or a protocol may have, as what checks them describes it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from kd_methods.strict import Strict

from ..config.protocol import Protocol
from ..config.recipe import Answers, ByEpoch, Crops, Detection, Mixing, Optimizer
from ..config.table_spec import METRICS, Efficiency, Pair, Preset, Row, TableSpec, TaskColumn

TABLE: dict[str, type[Strict]] = {
    "A table": TableSpec,
    "presets": Preset,
    "pairs": Pair,
    "tasks": TaskColumn,
    "methods": Row,
    "efficiency": Efficiency,
}
PROTOCOL: dict[str, type[Strict]] = {
    "A protocol": Protocol,
    "optimizer": Optimizer,
    "by_epoch": ByEpoch,
    "crops": Crops,
    "mixing": Mixing,
    "teacher_answers": Answers,
    "detection": Detection,
}
"""What is described, by its title, or by the key that has it."""

_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def page() -> str:
    """The page as Markdown."""
    lines = [
        "# The keys of tables and protocols",
        "",
        "Made from what checks them by `./reproduce.sh show keys > docs/yaml.md`; a test compares the two. How such a",
        "file is used: [own-data-and-models](own-data-and-models.md). Either may begin with `extends: NAME`, and then",
        "says what differs from that shipped one: mappings are merged key by key, all else is replaced. A protocol",
        "then has a `name` of its own, and no published value is compared with its numbers, unless it says",
        "`recipe: NAME` as well: what is not as in that one is then a deviation, in `deviations` or by key.",
    ]
    for title, described in (TABLE | PROTOCOL).items():
        heading = f"## {title}" if " " in title else f"### `{title}`"
        lines += ["", heading, "", inspect.cleandoc(described.__doc__ or "")]
        lines += ["", "| Key | Value | Default | Meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(name, field) for name, field in described.model_fields.items()]
        if described is TableSpec:
            metrics = "; ".join(f"`{name}` {words}" for name, words in METRICS.items())
            lines += ["", f"Metrics: {metrics}."]
    return "\n".join(lines)


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else _default(field.default)
    values = " or ".join(dict.fromkeys(_values(field.annotation)))
    return f"| `{name}` | {values} | {default} | {field.description or ''} |"


def _default(value: Any) -> str:
    """As YAML has it; nothing where there is none."""
    if value in ("", (), {}, None):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(kind: Any) -> Iterator[str]:
    """What may stand there, in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from _values(inner[0])
    elif origin is Literal:
        yield from (f"`{value}`" for value in inner if value)
    elif origin in (Union, types.UnionType):
        for one in inner:
            yield from _values(one) if one is not type(None) else ()
    elif origin is tuple:
        yield "list of " + " or ".join(dict.fromkeys(word for one in inner if one is not ... for word in _values(one)))
    elif origin is dict:
        yield "mapping to " + " or ".join(_values(inner[1]))
    elif isinstance(kind, type) and issubclass(kind, Strict):
        yield "mapping"
    else:
        yield _WORDS.get(kind, "value")
