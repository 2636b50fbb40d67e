"""Things that users can bring, by name: one registry for each kind. Imports nothing that it lists before it is asked.

What ships lies in the modules of one folder, in a tuple that each of them has: adding one is one file. Rooms above may
bring more (``EXTENSIONS`` of the top-level package, by the name of the tuple). Plugins call :meth:`Registry.register`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from kd_methods.errors import UserError, unknown


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """Things of one kind.

    Args:
        kind: what one of them is called, in messages and in what plugins bring (``task:NAME``).
        package: the dotted name of the folder whose modules have what ships.
        attribute: the tuple of things in those modules.
    """

    every: ClassVar[dict[str, Registry[Any]]] = {}

    def __init__(self, kind: str, package: str, attribute: str) -> None:
        self.kind, self.package, self.attribute = kind, package, attribute
        self._shipped: dict[str, T] | None = None
        self._registered: dict[str, T] = {}
        Registry.every[kind] = self

    def register(self, thing: T) -> None:
        """Add one from a plugin.

        Raises:
            UserError: there is one of that name already.
        """
        if thing.name in self.mapping():
            raise UserError(f"a {self.kind} called '{thing.name}' is registered already; give yours another name")
        self._registered[thing.name] = thing

    def mapping(self) -> dict[str, T]:
        """All of them by name, what ships first."""
        if self._shipped is None:
            self._shipped = {}
            for module in self._modules():
                for thing in getattr(importlib.import_module(module), self.attribute, ()):
                    if thing.name in self._shipped:
                        raise ValueError(f"{module}: a second {self.kind} called {thing.name}")
                    self._shipped[thing.name] = thing
        return {**self._shipped, **self._registered}

    def registered(self) -> dict[str, T]:
        """Those that plugins brought, by name."""
        return dict(self._registered)

    def get(self, name: str) -> T:
        """One by its name.

        Raises:
            UserError: there is none (the nearest names are named).
        """
        things = self.mapping()
        if name not in things:
            raise unknown(self.kind, name, things)
        return things[name]

    def _modules(self) -> list[str]:
        folder = importlib.import_module(self.package)
        shipped = [f"{self.package}.{module.name}" for module in pkgutil.iter_modules(folder.__path__)]
        return [*shipped, *importlib.import_module(self.package.partition(".")[0]).EXTENSIONS.get(self.attribute, ())]
