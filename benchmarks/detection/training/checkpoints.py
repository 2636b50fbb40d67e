"""The checkpoints of mmengine's Runner: what they may hold, and the newest one that is whole."""

from __future__ import annotations

import io
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from kd_methods.errors import Damaged, DiskError

from ...common.files import NoFile, check_archive, read_bytes, set_aside
from ...common.memory import out_of_memory
from ...common.weights import NUMPY


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


def last_checkpoint(folder: Path, key: str, model: nn.Module) -> Path | None:
    """The newest checkpoint of a cell that is whole and fits its model; older ones are removed.

    Those that cannot be used are set aside.

    Raises:
        DiskError: one cannot be read now.
    """
    paths = sorted(folder.glob("iter_*.pth"), key=lambda path: int(path.stem.removeprefix("iter_")), reverse=True)
    for place, path in enumerate(paths):
        try:
            _check(path, key, model)
        except NoFile:  # another process of the cell was faster
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


_ENTRIES = {"state_dict", "optimizer", "param_schedulers", "message_hub", "meta", "kd"}
"""What the Runner and :class:`benchmarks.detection.training.recording.Records` go on from."""


def _check(path: Path, key: str, model: nn.Module) -> None:
    """Raise Damaged if a checkpoint cannot be used, and DiskError if it cannot be read now."""
    content = read_bytes(path)
    check_archive(content, path)
    try:
        with torch.serialization.safe_globals(ALLOWED):
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # any: a kill may have left a part of it
        if out_of_memory(error):
            raise
        raise Damaged(f"{path} is no whole checkpoint ({type(error).__name__})") from None
    if not isinstance(state, dict) or _ENTRIES - state.keys():
        raise Damaged(f"{path} was written by another version of the code")
    if state["kd"].get("cell", key) != key:
        raise Damaged(f"{path} is another cell's")
    # The Runner takes of the weights what fits, and trains the rest anew.
    if _shapes(state["state_dict"]) != _shapes(model.state_dict()):
        raise Damaged(f"{path} has the weights of another version of the code")


def _shapes(weights: dict[str, Any]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items() if isinstance(value, torch.Tensor)}
