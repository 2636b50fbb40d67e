"""What users bring of their own (methods, networks, tasks …), from Python files named on the command line."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kd_methods.errors import Changed, UserError

from .console import say as say_here
from .files import digest, sha256_file
from .registry import Registry


def load(paths: Sequence[Path], say: Callable[[str], None] = say_here) -> dict[str, str]:
    """Import plugin files.

    What a file changes of the settings of the process is put back, as all cells depend on them;
    ``say`` gets a line on it.

    Returns:
        What each file registered, by the kind of its registry (``method:NAME``, ``optimizer:NAME`` …), mapped to the
        file's sha256; these digests enter the cells that use the name.

    Raises:
        UserError: a file is missing, fails to import, or registers nothing.
    """
    if not paths:
        return {}
    from .process.settings import settings_restored  # imports torch, as plugins do

    registered: dict[str, str] = {}
    for path in {path.resolve(): path for path in paths}.values():
        if not path.is_file():
            raise UserError(f"--plugin {path}: there is no such file")
        before = _registered()
        name = f"kd_plugin_{path.stem}_{digest(str(path.resolve()))[:8]}"  # two files may have one name
        spec = importlib.util.spec_from_file_location(name, path)
        if not (spec and spec.loader):
            raise UserError(f"--plugin {path}: a plugin is a Python file, its name ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        content = sha256_file(path)  # before the import, so that an edit during it is not taken for what ran
        try:
            with settings_restored() as changed:
                spec.loader.exec_module(module)
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a user's file may fail in any way; sys.exit is one
            raise UserError(f"--plugin {path} cannot be imported: {type(error).__name__}: {error}") from None
        if changed:
            say(f"--plugin {path} changes settings of the process ({', '.join(changed)}); they were put back")
        new = {name for name, thing in _registered().items() if before.get(name) is not thing}
        if replaced := sorted(new & before.keys()):
            raise UserError(f"--plugin {path}: {', '.join(replaced)} was there already; restart Python, or rename it")
        if not new:
            raise UserError(
                f"--plugin {path} registers nothing; use @kd_methods.register, register_network, register_task …"
            )
        registered.update(dict.fromkeys(new, content))
    return registered


def load_again(paths: Sequence[Path], planned: Mapping[str, str]) -> None:
    """Import plugin files in another process than that which planned with them.

    Args:
        paths: the files.
        planned: digests of what they registered there by name, among those of other things.

    Raises:
        UserError: as :func:`load`.
        Changed: a file has changed since.
    """
    digests = load(paths, lambda line: None)  # it was said there
    if changed := [name for name, digest in planned.items() if digests.get(name, digest) != digest]:
        raise Changed(
            f"the plugin of {', '.join(changed)} has changed since the run began; the same command begins anew with it"
        )


def _registered() -> dict[str, object]:
    """What plugins brought, by the kind of its registry (``method:NAME``, ``task:NAME`` …)."""
    from kd_methods import registry

    kinds = {"method": registry.brought(), **{kind: one.registered() for kind, one in Registry.every.items()}}
    return {f"{kind}:{name}": thing for kind, things in kinds.items() for name, thing in things.items()}
