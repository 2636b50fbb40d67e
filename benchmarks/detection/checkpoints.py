"""The checkpoints of mmengine's Runner: what they may hold, and the newest one that is whole."""

from __future__ import annotations

import io
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import HistoryBuffer

from kd_methods.errors import Damaged, DiskError

from ..common.files import check_archive, read_bytes, set_aside
from ..common.weights import NUMPY


def _statistic(owner: Any, name: str) -> Any:
    """What ``getattr`` does in a pickled history, and nothing else."""
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"getattr({owner}, {name}) is not allowed")
    return getattr(owner, name)


ALLOWED: list[Any] = [
    HistoryBuffer,
    (_statistic, "builtins.getattr"),
    *NUMPY,
]
"""What mmengine's own checkpoints hold beside tensors and plain values: the history of its log. None runs foreign code.
"""


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; older ones are removed, and those that cannot be used are set aside."""
    paths = sorted(folder.glob("iter_*.pth"), key=lambda path: int(path.stem.removeprefix("iter_")), reverse=True)
    for place, path in enumerate(paths):
        try:
            _check(path)
        except FileNotFoundError:  # another process of the cell was faster
            continue
        except Damaged as error:
            print(f"{error}; going on without it")
            with suppress(DiskError):  # as above
                set_aside(path, "unreadable")
            continue
        for older in paths[place + 1 :]:
            older.unlink(missing_ok=True)
        return path
    return None


def _check(path: Path) -> None:
    """Raise Damaged if a checkpoint cannot be read, and DiskError if it cannot be read now."""
    content = read_bytes(path)
    check_archive(content, path)
    try:
        with torch.serialization.safe_globals(ALLOWED):
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # any: a kill may have left a part of it
        raise Damaged(f"{path} is no whole checkpoint ({type(error).__name__})") from None
