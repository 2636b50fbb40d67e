"""Whether students measure here what their runs claim: of an archive that others sent, or of a store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kd_methods.errors import UserError

from ..common.console import Outcome, counted
from ..common.files import complaint
from ..common.workspace import Workspace
from ..config.protocol import Protocol
from ..store import documents, exchange, whole_runs
from ..store.cell import Cell
from ..store.make_cell import Distillation, make_cell
from ..store.whole_runs import STUDENT, EndedRun, whole
from ..tasks import get_task
from ..training import precision
from .engines import of
from .engines.engine import Evaluate, Evaluated

TOLERANCE = 0.1
"""Points by which a metric may always differ: another machine rounds otherwise."""

CHANGED = 2
"""Samples that may change sides for the same reason; of few samples these are more than :data:`TOLERANCE`."""

EXACT = 1e-6

_MISFITS = (UserError, RuntimeError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What a cell that others wrote, or a network that has changed, can fail to fit by."""

_ALLOWED = f"{TOLERANCE} points or {counted(CHANGED, 'sample')}"


@dataclass(frozen=True)
class Verified:
    """What a student claims of its last epoch and measures here, by metric, or why it cannot be evaluated here."""

    label: str
    claimed: Mapping[str, float]
    measured: Mapping[str, float]
    reason: str = ""
    samples: int = 0

    @property
    def difference(self) -> float:
        """Of the metric that differs most, measured minus claimed."""
        return max((self.measured[name] - value for name, value in self.claimed.items()), key=abs, default=0.0)

    @property
    def holds(self) -> bool:
        allowed = max(TOLERANCE, 100 * CHANGED / self.samples if self.samples else 0.0)
        return not self.reason and abs(self.difference) <= allowed + EXACT

    def line(self) -> str:
        """In words."""
        if self.reason:
            return f"{self.label}  cannot be evaluated here: {self.reason}"
        values = ", ".join(f"{name} {value:.2f}" for name, value in self.claimed.items())
        if abs(self.difference) <= EXACT:
            return f"{self.label}  {values}: equal"
        here = ", ".join(f"{name} {self.measured[name]:.2f}" for name in self.claimed)
        return f"{self.label}  {values}: differs by {self.difference:+.2f} ({here} here)"


def verify(source: Path | str, workspace: Workspace) -> tuple[Verified, ...]:
    """Evaluate every student of an archive, or of a store's folder, on the data here.

    Raises:
        Damaged: the archive is not what was written.
        UserError: there is no such archive or store.
    """
    with _store(Path(source)) as folder:
        verified, evaluators = list[Verified](), dict[str, Evaluate]()
        runs = whole(folder, workspace.say)
        for run in runs.ended:
            if run.status["state"] == "done":
                verified.append(_verified(run, workspace, evaluators))
                workspace.say(verified[-1].line())
        verified += [Verified(run.path.name, {}, {}, "it is damaged") for run in runs.damaged]
        return tuple(verified)


def report(source: Path, workspace: Workspace) -> Outcome:
    """As :func:`verify`, in words; missing is what does not hold, or could not be evaluated."""
    verified = verify(source, workspace)
    unknown, off = [v for v in verified if v.reason], [v for v in verified if not v.reason and not v.holds]
    exact = sum(not v.reason and abs(v.difference) <= EXACT for v in verified)
    text = (
        f"{len(verified) - len(unknown)} of {counted(len(verified), 'student')} evaluated here: {exact} equal, "
        f"{len(verified) - len(unknown) - exact - len(off)} within {_ALLOWED}, {len(off)} off"
    )
    missing = [f"{len(off)} off by more than {_ALLOWED}: {', '.join(v.label for v in off)}"] if off else []
    missing += [f"{len(unknown)} not evaluated"] if unknown else []
    return Outcome(text, "; ".join(missing) or ("" if verified else f"{source} has no run that is done"))


def mend(source: Path, workspace: Workspace) -> Outcome:
    """Set aside what is damaged in the runs of a store's folder, so that their tables compute it again.

    Raises:
        UserError: there is no such store, or it is an archive.
    """
    if source.is_file():
        raise UserError(f"{source} is an archive, in which nothing is mended; --mend takes an output folder")
    runs = whole_runs.mend(source, workspace.say)
    text = f"{source}: {len(runs.mended)} of {counted(runs.runs, 'run')} damaged"
    if runs.mended:
        text += f" and set aside; run the tables again that have them: {', '.join(runs.mended)}"
    return Outcome(text, f"being computed here: {', '.join(runs.busy)}" if runs.busy else "")


@contextlib.contextmanager
def _store(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield source
        return
    with exchange.opened(source) as folder:
        yield folder


def _verified(one: EndedRun, workspace: Workspace, evaluators: dict[str, Evaluate]) -> Verified:
    """``evaluators``: by their engines, those of runs that came before."""
    claimed: dict[str, float] = one.status["last"]
    try:
        if not (one.run / STUDENT).is_file():
            raise UserError("its network is not in the archive (export it with --students)")
        cell = Cell.of(documents.read(one.run / "cell.json", documents.WholeIdentity)["cell"])
        here = _measured(cell, one.run / STUDENT, workspace, evaluators)
        return Verified(one.label, claimed, here.metrics, samples=here.samples)
    except _MISFITS as error:
        return Verified(one.label, claimed, {}, " ".join(str(error).split())[:300])


def _measured(cell: Cell, file: Path, workspace: Workspace, evaluators: dict[str, Evaluate]) -> Evaluated:
    """What a cell's deployed network measures.

    Raises:
        UserError: not here: other data, another version of the code, a plugin that is not loaded.
    """
    protocol = protocol_of(cell)
    precision.check(protocol, workspace.device)
    task = get_task(protocol.task)
    engine = of(task)
    if engine.evaluator is None:
        raise UserError(f"engine '{engine.name}' evaluates in training alone")
    fingerprint = task.fingerprint(workspace.data_root, protocol)
    distillation = Distillation(cell.method, cell.teacher, cell.settings, cell.init)
    here = make_cell(protocol, fingerprint, cell.student, distillation, cell.seed, workspace.plugins).identity()
    ours, theirs = ({k: v for k, v in both.items() if k != "start"} for both in (here, cell.identity()))
    if other := [_difference(name, theirs[name], ours.get(name)) for name in theirs if theirs[name] != ours.get(name)]:
        raise UserError(f"here it is another cell: {'; '.join(other)}")
    if engine.name not in evaluators:
        evaluators[engine.name] = engine.evaluator(workspace)
    return evaluators[engine.name](cell, protocol, file)


def protocol_of(cell: Cell) -> Protocol:
    """The protocol that a cell was computed under, as far as its identity says.

    Raises:
        UserError: it names what is not there.
    """
    optimizer = {**cell.protocol.get("optimizer", {}), "lr": cell.lr}
    try:
        return Protocol.model_validate({**cell.protocol, "task": cell.task, "optimizer": optimizer})
    except ValidationError as error:
        location, message = complaint(error)
        where = ".".join(map(str, location))
        raise UserError(f"its protocol cannot be had here (is a plugin missing?): {where}: {message}") from None


def _difference(name: str, theirs: Any, ours: Any) -> str:
    """What of an identity differs, in words."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
        return "; ".join(_difference(key, theirs.get(key), ours.get(key)) for key in keys)
    if name == "data":
        return "the data here is other data"
    return f"{name} is {ours if ours is not None else 'missing'}, there {theirs if theirs is not None else 'missing'}"
