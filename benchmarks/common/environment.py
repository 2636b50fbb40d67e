"""What a result was computed with: versions, hardware, numerics, commit."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .console import counted
from .devices import overruled
from .places import PACKAGE

_INSTRUCTIONS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
"""Variables that keep libraries from a processor's instructions, or choose among them."""


def numerics(chosen: torch.device) -> dict[str, Any]:
    """What the bits of a result depend on beside versions, and its summary in words."""
    facts: dict[str, Any]
    if chosen.type == "cuda":
        major, minor = torch.cuda.get_device_capability(chosen)
        facts = {
            "processor": torch.cuda.get_device_name(chosen),
            "capability": f"{major}.{minor}",
            "cudnn": torch.backends.cudnn.version(),
        }
        words = f"capability {major}.{minor}, cuDNN {facts['cudnn']}"
    else:
        flags = _cpu("flags") or _cpu("Features")
        facts = {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "instructions": sorted(f for f in flags.split() if re.match("avx|amx|fma|sve|sme(?!p)|bf16|i8mm", f)),
            "limits": _limits(),
        }
        words = facts["isa"] + (" with AMX" if "amx_tile" in facts["instructions"] else "")
    precision = ", ".join(overruled(chosen))
    facts["fp32"] = precision or "fp32"
    return {**facts, "summary": f"{words}, fp32 " + (f"overruled by {precision}" if precision else "in full")}


def _limits() -> list[str]:
    return [f"{name}={os.environ[name]}" for name in _INSTRUCTIONS if os.environ.get(name)]


@functools.cache
def _cpu(field: str) -> str:
    """What the system says of the first processor under a name, where it does so as Linux does."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.partition(":")[0].strip() == field:
                return line.partition(":")[2].strip()
    return ""


def _processor() -> str:
    return _cpu("model name") or platform.processor() or platform.machine()


def machine(chosen: torch.device) -> str:
    """The hardware in words: GPU, or CPU model and thread count, with what keeps libraries from its instructions."""
    if chosen.type == "cuda":
        return torch.cuda.get_device_name(chosen)
    return ", ".join([_processor(), counted(torch.get_num_threads(), "thread"), *_limits()])


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
        ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def describe(chosen: torch.device) -> dict[str, Any]:
    """Everything above, with the versions of what computes."""
    return {
        "commit": commit(),
        "device": str(chosen),
        "machine": machine(chosen),
        "arithmetic": numerics(chosen),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy")},
            "cuda": torch.version.cuda if chosen.type == "cuda" else None,
        },
    }
