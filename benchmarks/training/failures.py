"""What an error concerns: a cell, its group, its run or the process; how a cell that failed is marked and reported."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from kd_methods.errors import Changed, DiskError, UserError

from ..common.events import CellEnded, LeftOut
from ..common.memory import out_of_memory
from ..store.cell import Cell
from ..store.runs import Run

LOST_AT_MOST = 3
"""How often processes may be lost under a cell that is alone in them before the cell has failed."""


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; everything is saved."""


class Diverged(Exception):
    """A loss term stopped being finite."""


class Unfit(UserError):
    """A network or an optimiser cannot be had under the protocol, whatever the method: no refusal of that."""


@contextmanager
def whatever_the_method() -> Iterator[None]:
    """Context in which bad input is not for the method to answer for; a disk's errors stay those of the run."""
    try:
        yield
    except DiskError:
        raise
    except UserError as error:
        raise Unfit(str(error)) from None


class Refused(Exception):
    """A method is not for this pair of networks, or not for what the protocol gives it."""


class Failure(NamedTuple):
    """How a cell ended: its state, one line that says why, and for whoever mends the code where it was."""

    state: str
    message: str
    trace: str = ""

    def mark(self, run: Run, **progress: int) -> None:
        """Write it down as the end of a run."""
        traced = {"trace": self.trace} if self.trace else {}
        run.set_status(self.state, message=self.message, **traced, **progress)

    def ended(self, cell: Cell) -> CellEnded:
        """What is reported of a cell that had begun."""
        return CellEnded(cell.key, cell.label, self.state, self.message)

    def left_out(self, cell: Cell) -> LeftOut:
        """What is reported of one that had not."""
        kind = "n/a" if self.state == "refused" else self.state.upper()
        return LeftOut(f"{cell.label}  {kind}: {self.message}")


def marked(
    run: Run, error: BaseException, *, building: bool = False, alone: bool = False, epoch: int | None = None
) -> Failure | None:
    """What an error makes of a cell, as :func:`of_cell`, written down as the end of its run."""
    if failure := of_cell(error, building, alone):
        failure.mark(run, **({} if epoch is None else {"epoch": epoch}))
    return failure


def of_cell(error: BaseException, building: bool = False, alone: bool = False) -> Failure | None:
    """What an error in a cell's own code makes of the cell, or None if it concerns more than that cell.

    More are concerned by a stop that the user asked for, by a full disk, by a file that is another one than when the
    run was planned, and by a lack of memory; those have to be raised again. Everything else is the cell's, ``sys.exit``
    in a method included; while a method is ``building``, a UserError says that it is not for this pair. A cell that is
    ``alone`` in its process lacks memory by itself.
    """
    if isinstance(error, KeyboardInterrupt | DiskError | Changed) or (out_of_memory(error) and not alone):
        return None
    if isinstance(error, Diverged):
        return Failure("diverged", line(error))
    if isinstance(error, Refused) or (building and isinstance(error, UserError) and not isinstance(error, Unfit)):
        return Failure("refused", line(error))
    trace = "" if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    return Failure("failed", line(error), trace)


def line(error: BaseException) -> str:
    """An error in one line, with its type where the message does not do without."""
    if isinstance(error, UserError):  # torch puts the traceback before one of a process that loads data
        return (str(error).splitlines() or [""])[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
    message = " ".join(str(error).split())
    return message if isinstance(error, Diverged | Refused) else f"{type(error).__name__}: {message}"
