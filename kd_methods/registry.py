"""Methods by name. A method's file is its registration: nothing else lists it.

Names and cards can be listed without importing a method (and so without importing torch): :func:`index` reads the
``card = Card(...)`` literals from the files' syntax trees.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .combination import combined
from .errors import UserError, unknown
from .modifiers import MODIFIERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .contract import Card, DataInfo, Family, Method, Network

    M = TypeVar("M", bound=type[Method])

FAMILIES: tuple[Family, ...] = ("logit", "feature", "relation", "blockwise")
"""What methods compare, in the order in which tables group them."""

FOLDERS = (*FAMILIES, "text", "detection")
"""The packages that hold methods: those for texts alone, or for detectors alone, have one for all their families."""

_classes: dict[str, type[Method]] = {}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of a method without importing it."""

    name: str
    family: Family
    modality: str
    title: str
    summary: str
    module: str
    recipe: str
    paper: str
    folder: str

    @property
    def year(self) -> str:
        """Of its paper."""
        return "".join(filter(str.isdigit, self.paper))[:4]


@functools.cache
def index() -> dict[str, Entry]:
    """Every built-in method by name, in table order; reads files, imports none of them."""
    entries: dict[str, Entry] = {}
    for folder in FOLDERS:
        places = importlib.import_module(f"{__package__}.{folder}").__path__
        for path in sorted(path for place in places for path in Path(place).glob("[!_]*.py")):
            cards: dict[str, dict[str, Any]] = {}
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and any(
                    isinstance(d, ast.Name) and d.id == "register" for d in node.decorator_list
                ):
                    literals = cards[node.name] = _card_literals(node, cards)
                    summary = (ast.get_docstring(node) or "").split("\n", 1)[0]
                    name = literals["name"]
                    module = f"{__package__}.{folder}.{path.stem}"
                    paper = literals.get("paper", "")
                    title, recipe = literals.get("title", name), literals.get("recipe", "")
                    family, modality = literals["family"], literals.get("modality", "images")
                    entries[name] = Entry(name, family, modality, title, summary, module, recipe, paper, folder)
    return entries


def _card_literals(node: ast.ClassDef, cards: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The literals in ``card = Card(...)``, or in ``card = replace(Other.card, ...)`` after it in the file."""
    for statement in node.body:
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and statement.targets[0].id == "card"
            and isinstance(statement.value, ast.Call)
        ):
            literals = {
                keyword.arg: keyword.value.value
                for keyword in statement.value.keywords
                if keyword.arg and isinstance(keyword.value, ast.Constant)
            }
            bases = [argument.value for argument in statement.value.args if isinstance(argument, ast.Attribute)]
            inherited = [cards.get(base.id, {}) for base in bases if isinstance(base, ast.Name)]
            return {**(inherited[0] if inherited else {}), **literals}
    raise UserError(f"the registered class {node.name} has no 'card = Card(...)'")


def register(cls: M) -> M:
    """Class decorator: makes the method available under its card's name.

    Raises:
        UserError: another class already has that name, or the card's family is none of :data:`FAMILIES`.
    """
    name = cls.card.name
    other = _classes.get(name)
    if other and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UserError(f"two methods are called '{name}': {other.__qualname__} and {cls.__qualname__}")
    if name in index() and index()[name].module != cls.__module__:
        raise UserError(f"a method called '{name}' ships with the suite; give yours another name")
    if cls.card.family not in FAMILIES:
        raise UserError(f"method '{name}' has the family '{cls.card.family}'; families are {', '.join(FAMILIES)}")
    _classes[name] = cls
    return cls


def brought() -> dict[str, type[Method[Any]]]:
    """The methods that do not ship with the suite, by name."""
    return {name: cls for name, cls in _classes.items() if name not in index()}


def available() -> list[str]:
    """Names of all methods, plugins included, in the order of tables; without modified and combined ones."""
    return [*index(), *brought()]


def plain_methods(name: str) -> tuple[str, ...]:
    """The plain methods that a name is made of: ``crd`` and ``kd`` for ``crd+kd@ls``."""
    return tuple(method.partition("@")[0] for method in name.split("+"))


def combined_methods(name: str) -> tuple[str, ...]:
    """The methods of a combination, with their modifiers: ``crd`` and ``kd@ls``; of any other name none."""
    return tuple(name.split("+")) if "+" in name else ()


def exists(name: str) -> bool:
    """Whether there is a method of that name, modified (``kd@ls``) or combined (``crd+kd``); imports no method."""
    if methods := combined_methods(name):
        return all(map(exists, methods))
    base, _, suffix = name.rpartition("@")
    return name in available() or (suffix in MODIFIERS and exists(base))


def get(name: str) -> type[Method]:
    """The class of a method, of a modified one such as ``kd@ls``, or of a combination such as ``crd+kd``.

    Raises:
        UserError: no such method (the message names the nearest ones), or a modifier or combination that does not fit.
    """
    if methods := combined_methods(name):
        return combined(*map(get, methods))  # type: ignore[arg-type]  # classes are hashable
    if "@" in name:
        if not exists(name):
            known = available()
            raise unknown("method", name, [*known, *(f"{method}@{suffix}" for method in known for suffix in MODIFIERS)])
        base, _, suffix = name.rpartition("@")
        return MODIFIERS[suffix].applied(get(base))  # type: ignore[arg-type]  # classes are hashable
    if name not in _classes:
        if name not in index():
            raise unknown("method", name, available())
        importlib.import_module(index()[name].module)
    return _classes[name]


def card(name: str) -> Card:
    """The card of a method: who it is, its formula, paper and divergences."""
    return get(name).card


def settings(name: str, values: dict[str, Any] | None = None) -> Any:
    """Validated settings of a method; unknown keys and wrong values are one clear line.

    Raises:
        UserError: a key that does not exist or a value of the wrong type or range.
    """
    from pydantic import ValidationError

    cls = get(name)
    values = values or {}
    for key in values:
        if key not in cls.Settings.model_fields:
            raise unknown(f"setting of method '{name}'", key, cls.Settings.model_fields)
    if combined_methods(name):
        for method, changes in values.items():
            if not isinstance(changes, dict):
                raise UserError(f"setting {name}.{method}={changes!r}: name a setting of {method}, as in {method}.KEY")
        return cls.Settings(**{method: settings(method, changes) for method, changes in values.items()})
    try:
        return cls.Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"setting {name}.{key}={first['input']!r}: {first['msg']}") from None


def check_stated(name: str, values: Mapping[str, Any]) -> None:
    """Of settings that somebody wrote for a combination, all have an effect.

    Those published for its methods may have none: they were not written for it.

    Args:
        name: of a method.
        values: that :func:`settings` took.

    Raises:
        UserError: the weight of a task loss that is not there, which is that of any method but the first.
    """
    first, *others = combined_methods(name) or (name,)
    for other in others:
        cls = get(other)
        for key in cls.task_weights:
            stated = values.get(other, {}).get(key)
            if stated is not None and stated != cls.Settings.model_fields[key].default:
                raise UserError(
                    f"setting {name}.{other}.{key}={stated}: the task loss of '{name}' is that of its first method,"
                    f" {first}; leave it out, or name {other} first"
                )


def build(name: str, student: Network, teacher: Network | None, info: DataInfo, **values: Any) -> Method:
    """Build a method for a pair of networks.

    Args:
        name: a name of :func:`available`.
        student, teacher: Network views (:func:`kd_methods.view`); teacher None for ``student``.
        info: the training set's size, labels and number of classes.
        **values: settings that differ from the method's defaults.

    Raises:
        UserError: unknown name or setting, or a pair that the method cannot work on.
    """
    cls = get(name)
    cls.card.check(cls.needs, student.layout, info)
    return cls(student, teacher, info, settings(name, values))
