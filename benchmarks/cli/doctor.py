"""What this machine has, and what can be run on it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path

import torch

from kd_methods.errors import UserError

from ..common import devices, environment
from ..common.places import INSTALLED, ROOT
from ..config.protocol import load_protocol
from ..config.table_spec import Preset, load_table, table_names
from ..store.runs import Store
from ..tasks import get_task, task_names
from ..teachers.zoo import Zoo


def report(data_root: Path, checkpoints: Path, output: Path) -> Iterator[str]:
    """Lines for a person: versions, devices, store, data, teachers, tables."""
    facts = environment.describe(devices.device("auto"))
    yield "versions   " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    yield f"device     {facts['device']}: {facts['machine']}"
    yield f"numerics   {facts['arithmetic']['summary']}"
    try:
        devices.check_precision(torch.device(facts["device"]))
    except UserError as error:
        yield f"           nothing can be run: {error}"
    if torch.cuda.is_available():
        yield f"memory     {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB on the GPU"
    yield f"commit     {facts['commit'] or 'no git checkout'}"
    try:
        Store(output).check_writable()
        yield f"store      {output}: writable, {len(list((output / 'runs').glob('*/status.json')))} runs"
    except UserError as error:
        yield f"store      {error}"
    installed = {(distribution.name or "").lower() for distribution in metadata.distributions()}
    lacking = set()
    for extra, packages in extras().items():
        missing = [package for package in packages if package.lower() not in installed]
        lacking |= {extra} if missing else set()
        locked = (ROOT / "requirements" / f"{extra}.txt").is_file()
        remedy = "./reproduce.sh installs it where it is needed" if locked else f"pip install '.[{extra}]'"
        state = f"{', '.join(missing)} missing: {remedy}" if missing else "installed"
        yield f"extra      {extra}: {state}"
    with_data = set()
    for name in task_names():
        try:
            yield f"data       {name}: {get_task(name).samples(data_root, download=False)} training samples"
            with_data.add(name)
        except UserError as error:
            yield f"data       {name}: {error}"
    zoo = Zoo(checkpoints)
    files = [name for name, entry in zoo.entries.items() if zoo.path(entry).is_file()]
    yield f"teachers   {checkpoints}: {', '.join(files) or 'none installed (trained as cells where needed)'}"
    for name in table_names():
        yield f"table      {name}: presets that can run now: {', '.join(runnable(name, with_data, lacking)) or 'none'}"


def runnable(name: str, with_data: Collection[str], lacking: Collection[str]) -> list[str]:
    """The presets of a table whose columns' tasks all have data.

    Args:
        name: the table's.
        with_data: tasks whose data are at hand.
        lacking: extras that are not installed.
    """
    table = load_table(name)
    ready = [] if table.extra in lacking else list(table.presets)
    return [preset for preset in ready if tasks_of(table.preset(preset)) <= set(with_data)]


def tasks_of(preset: Preset) -> set[str]:
    """The tasks of a preset's columns; ``preset`` is complete, as :meth:`TableSpec.preset` gives it."""
    usual = preset.task or load_protocol(preset.protocol).task
    return {pair.task or usual for pair in preset.pairs or ()}


def extras() -> dict[str, list[str]]:
    """The packages of each extra but the developers', as pyproject.toml has them, or what was installed from it."""
    if INSTALLED:
        by_extra: dict[str, list[str]] = {}
        for line in metadata.requires("kd-benchmark") or ():
            if of_extra := re.search(r"""extra == ['"]([\w-]+)""", line):
                by_extra.setdefault(of_extra[1], []).append(line)
    else:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        by_extra = project["optional-dependencies"]
    return {
        extra: [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]
        for extra, lines in by_extra.items()
        if extra != "dev"
    }
