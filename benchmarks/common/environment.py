"""What a result was computed with: versions, hardware, commit."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kd_methods.errors import UserError

from .yaml_files import ROOT

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of malloc.h


def device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: give auto, cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: give auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda":
        # The protocols say fp32, and mean it: TensorFloat-32 keeps 10 bits of the mantissa.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if chosen.type == "cpu":
        _keep_memory()
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return chosen


@functools.cache
def _keep_memory() -> None:
    """Freed memory stays with this process, where the C library is glibc.

    Else glibc gives every tensor above 32 MiB back at once, and the next step faults its pages in again one by one.
    """
    _glibc("mallopt", _M_MMAP_MAX, 0)
    _glibc("mallopt", _M_TRIM_THRESHOLD, 2**31 - 1)
    _glibc("mallopt", _M_TOP_PAD, 2**26)


def release_memory() -> None:
    """Give freed memory back once, where the C library is glibc: what is resident then is in use."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    """Call a function that only glibc has; elsewhere nothing happens."""
    try:
        call = getattr(ctypes.CDLL(None), function)
    except (AttributeError, OSError, TypeError):
        return
    call(*arguments)


@functools.cache
def machine(chosen: torch.device) -> str:
    """The hardware in words: GPU, or CPU model and thread count."""
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{model}, {torch.get_num_threads()} threads"


@functools.cache
def commit() -> str:
    """The suite's git commit, ``-dirty`` where files differ from it; empty outside a checkout."""
    try:
        sha = _git("rev-parse", "--short=12", "HEAD")
        return sha + ("-dirty" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def describe(chosen: torch.device) -> dict[str, Any]:
    """Everything above, with the versions of what computes."""
    return {
        "commit": commit(),
        "device": str(chosen),
        "machine": machine(chosen),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy")},
            "cuda": torch.version.cuda if chosen.type == "cuda" else None,
        },
    }
