"""The store's documents: what is in them, and whether they are what was written. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Required

from pydantic import AfterValidator, ConfigDict, StrictFloat, StrictInt
from typing_extensions import TypedDict

from kd_methods.errors import Damaged

from ..common.files import digest, read_json, set_aside, shaped, write_json

REMEDY = "a run sets it aside and computes it again"
"""Of what a plan reads of every run."""

MEND = "`verify OUTPUT --mend` sets it aside, and the next run of its table computes it again"
"""Of what a plan does not read of runs that are done: the digests of thousands of files take their time."""

NO_NETWORK = (
    "`import` takes it from an archive that `export --students` wrote, and what learns from it computes it again"
)
"""Of a deployed network, without which a run may have been imported."""

SEAL = "sha256"
"""Under this name a document carries the digest of the rest of it; old ones have none, and are not checked."""

OPEN = ConfigDict(extra="allow")
"""Of shapes: a document may have more than what is read of it."""


class _Status(TypedDict, total=False):
    __pydantic_config__ = OPEN  # type: ignore[misc]

    state: Required[Literal["running", "interrupted", "done", "diverged", "failed", "refused"]]
    message: str
    trace: str
    epoch: int
    epochs: int
    last: dict[str, float]
    best: dict[str, float]
    remarks: list[str]
    key: str
    files: dict[str, str]


def _complete(status: Any) -> Any:
    needed = {"done": ("last", "best"), "diverged": ("message",), "failed": ("message",), "refused": ("message",)}
    if missing := [name for name in needed.get(status["state"], ()) if name not in status]:
        raise ValueError(f"it is {status['state']} and has no {missing[0]}")
    return status


Status = Annotated[_Status, AfterValidator(_complete)]
"""status.json. ``last``, ``best``: metrics of a run that is done; ``key``: its cell's; ``files``: their digests."""


class Versions(TypedDict, total=False):
    """Versions by package; None where a package takes no part."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    torch: Required[str]


class Environment(TypedDict, total=False):
    """What a result was computed with: a part of environment.json, and of a file in costs/.

    ``arithmetic``: what bits depend on beside versions, with its ``summary`` in words; old records do not have it.
    """

    __pydantic_config__ = OPEN  # type: ignore[misc]

    date: Required[str]
    commit: Required[str]
    machine: Required[str]
    versions: Required[Versions]
    device: str
    arithmetic: dict[str, Any]
    from_epoch: int
    from_step: int


_Number = StrictInt | StrictFloat  # which stay what they are: the key is the digest of their text


class _TeacherIdentity(TypedDict, total=False):
    __pydantic_config__ = OPEN  # type: ignore[misc]

    network: Required[str]
    mean: Required[list[_Number]]
    std: Required[list[_Number]]
    weights: str
    cell: str


class _MethodIdentity(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]

    name: str
    version: StrictInt
    settings: dict[str, Any]


class _ProtocolIdentity(TypedDict, total=False):
    __pydantic_config__ = OPEN  # type: ignore[misc]

    name: str
    optimizer: dict[str, Any]


class _CellIdentity(TypedDict, total=False):
    __pydantic_config__ = OPEN  # type: ignore[misc]

    schema: Required[StrictInt]
    task: Required[str]
    data: Required[str]
    protocol: Required[_ProtocolIdentity]
    lr: Required[_Number]
    teacher: Required[_TeacherIdentity | None]
    student: Required[str]
    method: Required[_MethodIdentity]
    seed: Required[StrictInt]
    versions: dict[str, StrictInt]
    plugins: dict[str, str]
    init: str
    start: _TeacherIdentity


class _Identity(TypedDict):
    __pydantic_config__ = OPEN  # type: ignore[misc]

    key: str
    label: str
    cell: dict[str, Any]


class _WholeIdentity(_Identity):
    cell: _CellIdentity  # type: ignore[misc]


def _with_its_key(identity: Any) -> Any:
    if digest(identity["cell"]) != identity["key"]:
        raise ValueError("the key is not this cell's")
    return identity


Identity = Annotated[_Identity, AfterValidator(_with_its_key)]
"""cell.json: a cell's identity, of which its key is the digest, and what it is called."""

WholeIdentity = Annotated[_WholeIdentity, AfterValidator(_with_its_key)]
"""The same for who reads what the cell is, and not the key alone."""


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a document with its seal, whole or not at all."""
    write_json(path, sealed(content))


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """A document with its seal."""
    content = json.loads(json.dumps(content))  # as it will be read
    return {**content, SEAL: _digest(content)}


def read(path: Path, shape: Any, remedy: str = REMEDY) -> Any:
    """A document as the type ``shape``, or None where there is none.

    Raises:
        DiskError: it is there and cannot be read.
        Damaged: it is not what was written, or has another shape.
    """
    content = read_json(path, dict[str, Any] | list[Any], remedy)
    if content is None:
        return None
    if isinstance(content, dict) and SEAL in content:
        seal = content.pop(SEAL)
        if seal != _digest(content):
            raise Damaged(f"{path} is damaged (it is not what was written); {remedy}")
    return shaped(content, shape, str(path), remedy, Damaged)


def _digest(content: dict[str, Any]) -> str:
    # Unlike identities, results may have values that are no number.
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_or_set_aside(path: Path, shape: Any, say: Callable[[str], None]) -> Any:
    """A document as the type ``shape``, or None where there is none; a damaged one is set aside, and that is said."""
    try:
        return read(path, shape)
    except Damaged as error:
        say(f"{error}; kept as {set_aside(path, 'damaged').name}")
        return None


def reason(damage: Damaged | str) -> str:
    """What is wrong with a document or a file, without what to do about it."""
    text = str(damage)
    for remedy in (REMEDY, MEND, NO_NETWORK):
        text = text.partition(f"; {remedy}")[0]
    return text


def begin(known: Environment) -> tuple[int, int]:
    """The epoch and step from which on it computed a run."""
    return known.get("from_epoch", 1), known.get("from_step", 0)


def change(before: Environment, now: Environment) -> str:
    """What bits depend on and is not what it was; facts that only one of both records has say nothing."""
    old, new = _decisive(before), _decisive(now)
    texts = [
        f"{name} {new[name]} instead of {old[name]}" for name in sorted(new) if old.get(name, new[name]) != new[name]
    ]
    return f"computed with {', '.join(texts)} from epoch {begin(now)[0]} on" if texts else ""


def _decisive(facts: Environment) -> dict[str, str]:
    """What the bits of a result depend on, of the facts about what computes a run."""
    arithmetic = {name: value for name, value in facts.get("arithmetic", {}).items() if name != "summary"}
    versions = {name: value for name, value in facts["versions"].items() if name != "python" and value}
    decisive: dict[str, Any] = {"device": facts.get("device", "").partition(":")[0], **arithmetic, **versions}
    return {
        name: " ".join(value) or "none" if isinstance(value, list) else str(value) for name, value in decisive.items()
    }
