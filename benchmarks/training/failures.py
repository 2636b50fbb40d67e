"""What an error concerns: a cell, its group, its run or the process; and how a cell that failed is marked."""

from __future__ import annotations

import traceback
from typing import NamedTuple

from kd_methods.errors import DiskError, UserError

from ..common.environment import out_of_memory


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; everything is saved."""


class Diverged(Exception):
    """A loss term stopped being finite."""


class Refused(Exception):
    """A method is not for this pair of networks, or not for what the protocol gives it."""


class Failure(NamedTuple):
    """How a cell ended: its state, one line that says why, and for whoever mends the code where it was."""

    state: str
    message: str
    trace: str = ""

    def facts(self) -> dict[str, str]:
        """For the run's status."""
        return {"state": self.state, "message": self.message, **({"trace": self.trace} if self.trace else {})}


def of_cell(error: BaseException, building: bool = False) -> Failure | None:
    """What an error in a cell's own code makes of the cell, or None if it concerns more than that cell.

    More are concerned by a stop that the user asked for, by a full disk and by a lack of memory, and those have to be
    raised again. Everything else is the cell's, ``sys.exit`` in a method included; while a method is ``building``, a
    UserError says that it is not for this pair.
    """
    if isinstance(error, KeyboardInterrupt | DiskError) or out_of_memory(error):
        return None
    if isinstance(error, Diverged):
        return Failure("diverged", line(error))
    if isinstance(error, Refused) or (building and isinstance(error, UserError)):
        return Failure("refused", line(error))
    trace = "" if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    return Failure("failed", line(error), trace)


def line(error: BaseException) -> str:
    """An error in one line, with its type where it is not one that speaks for itself."""
    if isinstance(error, UserError):  # torch puts the traceback before one of a process that loads data
        return (str(error).splitlines() or [""])[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
    message = " ".join(str(error).split())
    return message if isinstance(error, Diverged | Refused) else f"{type(error).__name__}: {message}"
