"""Weights in memory and on disk: state dicts in any of the field's files, their digests, and loading them strictly."""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kd_methods.contract import Network
from kd_methods.errors import UserError

Net = TypeVar("Net", bound=Network)


class _Ignored:
    """Stands for what mmengine keeps of its log in checkpoints."""

    def __setstate__(self, state: Any) -> None:
        pass


def _nothing(*_: Any) -> None:
    """Stands for ``getattr``, by which that log names its statistics."""


NUMPY: list[Any] = [
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64)),
]
"""Arrays and scalars of numpy in checkpoints; they run no code when unpickled."""

# Training scripts put their options, numpy's values and a log beside the weights; none of these runs code either.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (_Ignored, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_nothing, "builtins.getattr"),
    *NUMPY,
]


def read(path: Path, device: torch.device | str = "cpu") -> Any:
    """What torch.save wrote to a file; no code in the file is run.

    Raises:
        UserError: the file is missing, truncated, or holds other types than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        reason = str(error).split(". ")[0].split("\n")[0]
        raise UserError(f"{path} is no readable checkpoint, or is truncated ({reason})") from None


def to_bytes(state: Any) -> bytes:
    """torch.save into memory, to be written atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def load_weights(path: Path) -> dict[str, Tensor]:
    """A plain state dict from any of the field's checkpoint files.

    The tensors may lie at the top or under ``model``, ``state_dict`` or ``net``, with or without ``module.``.

    Raises:
        UserError: the file is missing, truncated, or holds no state dict.
    """
    content = read(path)
    for key in ("model", "state_dict", "net"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors or len(tensors) != len(content):
        raise UserError(f"{path} holds no state dict (looked at the top and under model, state_dict, net)")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def fit(weights: dict[str, Tensor], module: nn.Module, what: str) -> None:
    """Load weights strictly; what does not fit is one clear line.

    Raises:
        UserError: keys or shapes differ: the checkpoint is of another architecture or another number of classes.
    """
    own = module.state_dict()
    missing, foreign = [k for k in own if k not in weights], [k for k in weights if k not in own]
    shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if missing or foreign or shapes:
        detail = (
            f"'{shapes[0]}' is {tuple(weights[shapes[0]].shape)}, needed {tuple(own[shapes[0]].shape)}"
            if shapes and not (missing or foreign)
            else f"{len(missing)} keys missing, {len(foreign)} unknown, e.g. '{(missing + foreign)[0]}'"
        )
        raise UserError(f"{what} is a checkpoint of another architecture: {detail}")
    module.load_state_dict(weights)


def frozen(network: Net, path: Path) -> Net:
    """A network view with the weights of a file, in evaluation mode and without gradients.

    Raises:
        UserError: the file cannot be read, or is of another architecture.
    """
    fit(load_weights(path), network.module, str(path))
    return network.requires_grad_(False).eval()


def weights_digest(weights: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of the tensors, independent of how they are packed in a file."""
    content = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].detach().cpu().contiguous()
        content.update(f"{key}|{value.dtype}|{tuple(value.shape)}|".encode())
        content.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return content.hexdigest()
