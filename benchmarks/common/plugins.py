"""What users bring of their own (methods, networks, tasks …), from Python files named on the command line."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from kd_methods.errors import UserError

from .files import sha256_file
from .registry import Registry


def load(paths: Sequence[Path]) -> dict[str, str]:
    """Import plugin files.

    Returns:
        What each file registered, by the kind of its registry (``method:NAME``, ``optimizer:NAME`` …), mapped to the
        file's sha256; these digests enter the cells that use the name.

    Raises:
        UserError: a file is missing, fails to import, or registers nothing.
    """
    registered: dict[str, str] = {}
    for path in paths:
        if not path.is_file():
            raise UserError(f"--plugin {path}: there is no such file")
        before = _names()
        name = f"kd_plugin_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if not (spec and spec.loader):
            raise UserError(f"--plugin {path}: a plugin is a Python file, its name ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a user's file may fail in any way; sys.exit is one
            raise UserError(f"--plugin {path} cannot be imported: {type(error).__name__}: {error}") from None
        new = _names() - before
        if not new:
            raise UserError(
                f"--plugin {path} registers nothing; use @kd_methods.register, register_network, register_task …"
            )
        registered.update(dict.fromkeys(new, sha256_file(path)))
    return registered


def _names() -> set[str]:
    import kd_methods

    brought = {f"{kind}:{name}" for kind, registry in Registry.every.items() for name in registry.registered()}
    return {f"method:{name}" for name in kd_methods.available()} | brought
