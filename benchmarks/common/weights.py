"""Weights in memory and on disk: state dicts in any of the field's files, their digests, and loading them strictly."""

from __future__ import annotations

import argparse
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kd_methods.contract import Network
from kd_methods.errors import Changed, Damaged, UserError, unknown

from .files import check_archive, read_bytes
from .memory import out_of_memory

Net = TypeVar("Net", bound=Network)


class _Ignored:
    """Stands for what mmengine keeps of its log in checkpoints."""

    def __setstate__(self, state: Any) -> None:
        pass


def _nothing(*_: Any) -> None:
    """Stands for ``getattr``, by which that log names its statistics."""


NUMPY: list[Any] = [
    *(
        (getattr(np._core.multiarray, name), f"numpy.{core}.multiarray.{name}")  # type: ignore[attr-defined]
        for core in ("_core", "core")  # numpy 2 and 1
        for name in ("_reconstruct", "scalar")
    ),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in f"?{np.typecodes['AllInteger']}{np.typecodes['AllFloat']}SU"},
]
"""Arrays and scalars of numpy in checkpoints, whichever numpy wrote them; they run no code when unpickled."""

# Training scripts put their options, numpy's values and a log beside the weights; none of these runs code either.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (_Ignored, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_nothing, "builtins.getattr"),
    *NUMPY,
]

_FOREIGN = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself, which comes with: git lfs pull"),
    (rb"\s*<(!doctype\s+)?html", "an HTML page that a web site sent in the file's place; download it again"),
    (rb"\x1f\x8b|.{257}ustar", "an archive; unpack it first"),
    (rb".{8}\{\"", "a safetensors file; write it again with torch.save(safetensors.torch.load_file(FILE), NEW)"),
)
"""What else lies where a checkpoint should be: how it begins, what it is and what to do."""


def read(path: Path, device: torch.device | str = "cpu") -> Any:
    """What torch.save wrote to a file; no code in the file is run.

    Raises:
        DiskError: the file is there and cannot be read.
        NoFile: there is none.
        Damaged: it is not what was written, truncated, something else, or holds other types than tensors and plain
            values.
    """
    content = read_bytes(path)
    check_archive(content, path)
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:  # a damaged file leads torch's reader anywhere
        if out_of_memory(error):
            raise
        raise Damaged(f"{path} is no readable checkpoint{_reason(content[:512], str(error))}") from None


def _reason(head: bytes, message: str) -> str:
    foreign = next((what for start, what in _FOREIGN if re.match(start, head, re.DOTALL | re.IGNORECASE)), None)
    if foreign:
        return f": it is {foreign}"
    refused = re.search(r"GLOBAL ([\w.]+) (?:was not an allowed|whose module)", message)
    if refused:
        return (
            f": it holds a {refused[1]}, and objects can run code when they are read; "
            "save the weights alone, with torch.save(model.state_dict(), FILE)"
        )
    match = re.search(r"WeightsUnpickler error: (.*)", message)
    reason = match[1] if match else (message.splitlines() or [""])[0].split(". ")[0]
    reason = printable(reason) if head else "it is empty"
    return f", or is truncated ({reason})"


def printable(text: object) -> str:
    """What stands in a file as a part of one line."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text)[:200])


def to_bytes(state: Any) -> bytes:
    """torch.save into memory, to be written atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


USUAL = ("", "model", "state_dict", "net")
"""Where the weights as trained lie in the field's checkpoint files, the top first."""


def state_dicts(path: Path) -> dict[str, dict[str, Tensor]]:
    """Every state dict in a checkpoint file by where it lies, such as ``state_dict_ema``; empty for the top.

    Those with usual names come first, and averages of weights (EMA) last.

    Raises:
        UserError: the file cannot be read, holds no state dict, or one of no ordinary tensors.
    """
    dicts: dict[str, dict[str, Tensor]] = {}

    def look(value: Any, name: str, deeper: int) -> None:
        if not isinstance(value, dict) or not value:
            return
        if all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items()):
            dicts[name] = {key: tensor.detach() for key, tensor in value.items()}
        elif deeper:
            for key, inner in value.items():
                look(inner, f"{name}.{printable(key)}".lstrip("."), deeper - 1)

    look(read(path), "", 2)
    if not dicts:
        raise UserError(f"{path} holds no state dict, neither at the top nor under any name")
    for weights in dicts.values():
        for key, value in weights.items():
            if kind := _strange(value):
                raise UserError(f"{path}: '{printable(key)}' is {kind}; needed are ordinary tensors")
    ranks = {name: (USUAL.index(name) if name in USUAL else len(USUAL), "ema" in name.lower()) for name in dicts}
    return {name: dicts[name] for name in sorted(dicts, key=ranks.__getitem__)}


def _strange(value: Tensor) -> str:
    """What kind of tensor it is, where no ordinary one."""
    if value.is_meta:
        return "without values (on the device meta)"
    if value.is_quantized or (value.is_floating_point() and value.itemsize < 2):
        return f"quantised ({value.dtype})"
    if value.layout != torch.strided or value.is_nested:
        return f"{'nested' if value.is_nested else 'sparse'}"
    return f"complex ({value.dtype})" if value.is_complex() else ""


def load_weights(path: Path, wanted: str = "") -> dict[str, Tensor]:
    """The first of :func:`state_dicts`: of files that the suite has written the only one.

    Args:
        path: the file.
        wanted: the digest that the weights have to have; empty for any.

    Raises:
        UserError: as there.
        Changed: the weights have another digest.
    """
    weights = next(iter(state_dicts(path).values()))
    if wanted and weights_digest(weights) != wanted:
        raise Changed(f"{path} has other weights than when the run was planned; the same command plans anew")
    return weights


@dataclass(frozen=True)
class Taken:
    """Weights out of a checkpoint file.

    weights  under the network's own keys
    name     where in the file they lay; empty for the top
    others   where others lie that fit as well
    """

    weights: dict[str, Tensor]
    name: str
    others: tuple[str, ...]


def take(path: Path, module_of: Callable[[dict[str, Tensor]], nn.Module], which: str = "") -> Taken:
    """The state dict of a foreign file that fits a network: the first one, or the one that lies under ``which``.

    Args:
        path: the file.
        module_of: makes the network for given weights.
        which: the name of a state dict in the file.

    Raises:
        UserError: as :func:`state_dicts` and :func:`fit`, or there is nothing called ``which``.
    """
    candidates = state_dicts(path)
    if which and which not in candidates:
        raise unknown(f"state dict in {path}", which, filter(None, candidates))
    module = module_of(candidates[which] if which else next(iter(candidates.values())))
    fitting = [name for name, weights in candidates.items() if not _misfit(_adapted(weights, module), module)]
    name = which or next(iter([*fitting, *candidates]))
    weights = fit(candidates[name], module, f"{path} ({name})" if name else str(path))
    return Taken(weights, name, tuple(other for other in fitting if other != name))


def fit(weights: dict[str, Tensor], module: nn.Module, what: str) -> dict[str, Tensor]:
    """Load weights strictly, and return them under the module's own keys; what does not fit is one clear line.

    All keys may have one prefix more, as wrappers give it (``module.``, ``_orig_mod.``, ``model.``), and the counters
    of batches may be missing, which old files do not have.

    Raises:
        UserError: keys or shapes differ (the checkpoint is of another architecture or another number of classes), or
            values are no numbers that the network can have.
    """
    adapted = _adapted(weights, module)
    if misfit := _misfit(adapted, module):
        raise UserError(f"{what} {misfit}")
    module.load_state_dict(adapted)
    return adapted


def _adapted(weights: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Weights under the module's keys, as far as they have them."""
    expected = module.state_dict()
    if AVERAGED not in expected:
        weights = {key: value for key, value in weights.items() if key != AVERAGED}
    first = next(iter(weights), "")
    starts = [first[: i + 1] for i, letter in enumerate(first) if letter == "."]
    common = ["", *(start for start in starts if all(key.startswith(start) for key in weights))]
    prefix = max(common, key=lambda start: sum(f"{start}{key}" in weights for key in expected))
    adapted = {key.removeprefix(prefix): value for key, value in weights.items()}
    adapted |= {key: expected[key] for key in expected if key not in adapted and key.endswith("num_batches_tracked")}
    return {**{key: adapted[key] for key in expected if key in adapted}, **adapted}


AVERAGED = "n_averaged"
"""What torch's averages of models count beside their weights."""


def _misfit(weights: dict[str, Tensor], module: nn.Module) -> str:
    """Why a module cannot have these weights; empty where it can."""
    expected = module.state_dict()
    missing, foreign = [k for k in expected if k not in weights], [k for k in weights if k not in expected]
    shapes = [k for k in expected if k in weights and expected[k].shape != weights[k].shape]
    if missing or foreign or shapes:
        detail = (
            f"'{printable(shapes[0])}' is {tuple(weights[shapes[0]].shape)}, needed {tuple(expected[shapes[0]].shape)}"
            if shapes and not (missing or foreign)
            else f"{len(missing)} keys missing, {len(foreign)} unknown, e.g. '{printable((missing + foreign)[0])}'"
        )
        return f"is a checkpoint of another architecture: {detail}"
    for key, value in weights.items():
        if not expected[key].is_floating_point():
            continue
        if not value.is_floating_point():
            return f"has no weights: '{printable(key)}' is of integers ({value.dtype}), quantised or of something else"
        odd = int((~value.to(expected[key].dtype).isfinite()).sum())
        if odd:
            return f"has broken weights: {odd} of {value.numel()} values of '{printable(key)}' are NaN or infinite"
        if key.endswith("running_var") and (value < 0).any():
            return f"has broken weights: '{printable(key)}' has negative variances"
    return ""


def frozen(network: Net, path: Path, wanted: str = "") -> Net:
    """A network view with the weights of a file, in evaluation mode and without gradients.

    Raises:
        UserError: the file cannot be read, has other weights than those ``wanted``, or is of another architecture.
    """
    fit(load_weights(path, wanted), network.module, str(path))
    return network.requires_grad_(False).eval()


def weights_digest(weights: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of the tensors, independent of how they are packed in a file."""
    content = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].detach().cpu().contiguous()
        content.update(f"{key}|{value.dtype}|{tuple(value.shape)}|".encode())
        content.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return content.hexdigest()
