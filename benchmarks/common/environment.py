"""What a result was computed with: versions, hardware, numerics, commit."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import operator
import os
import platform
import re
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kd_methods.errors import UserError

from .console import counted
from .places import PACKAGE

_PRECISION = {
    "cpu": ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),
    "cuda": ("NVIDIA_TF32_OVERRIDE",),
}
"""Variables that overrule the precision which a program asks for, by the device."""

_INSTRUCTIONS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
"""Variables that keep libraries from a processor's instructions, or choose among them."""

_SWITCHES = {
    "cpu": ("mkldnn.matmul", "mkldnn.conv"),
    "cuda": ("cuda.matmul", "cudnn.conv"),
}
"""What torch.backends has a precision of fp32 for, by the device."""

_FP32_ERROR = 5e-5
"""Relative error that products in fp32 stay far below, and those of TensorFloat-32 and bf16 far above."""

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
    keep_memory(chosen)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return chosen


def check_enough(first: torch.device, count: int) -> None:
    """Whether there is a device for each of the processes that share a cell's batches.

    Raises:
        UserError: there are fewer GPUs from ``first`` on.
    """
    if first.type == "cuda" and count > 1:
        present = torch.cuda.device_count() - (first.index or 0)
        if count > present:
            raise UserError(f"{count} processes need a GPU each, and there are {present}: --processes {present}")


def of_processes(first: torch.device, count: int) -> list[torch.device]:
    """The devices of processes that share a cell's batches: a GPU each, from ``first`` on, or all the CPU."""
    if first.type == "cpu":
        return [first] * count
    return [torch.device(first.type, (first.index or 0) + rank) for rank in range(count)]


@functools.cache
def keep_memory(chosen: torch.device) -> None:
    """Freed memory stays with a process that computes on a CPU, where the C library is glibc.

    Else glibc gives every tensor above 32 MiB back at once, and the next step faults its pages in again one by one.
    """
    if chosen.type != "cpu":
        return
    _glibc("mallopt", _M_MMAP_MAX, 0)
    _glibc("mallopt", _M_TRIM_THRESHOLD, 2**31 - 1)
    _glibc("mallopt", _M_TOP_PAD, 2**26)


def release_memory() -> None:
    """Give freed memory back once, where the C library is glibc: what is resident then is in use."""
    _glibc("malloc_trim", 0)


_SHORTAGE = re.compile(
    r"out of memory|not enough memory|(cannot|can't) allocate memory|bad_alloc|alloc_failed"
    r"|could not (create|initialize|execute) a (memory|primitive)",
    re.IGNORECASE,
)
"""How torch's allocator for the CPU, the operating system, the C++ library, CUDA's libraries and oneDNN say it."""


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory is short, on whatever device and in whatever library, or was raised over one.

    oneDNN gives no reason when it cannot create something; for want of memory it says the same, so it counts.
    """
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _glibc(function: str, *arguments: int) -> None:
    """Call a function that only glibc has; elsewhere nothing happens."""
    try:
        call = getattr(ctypes.CDLL(None), function)
    except (AttributeError, OSError, TypeError):
        return
    call(*arguments)


def check_precision(chosen: torch.device) -> None:
    """Raise where fp32 is not fp32: the precision is the protocol's, and as such in each cell's key.

    Raises:
        UserError: a variable or a switch of torch overrules it; the message names it.
    """
    if overruling := overruled(chosen):
        raise UserError(
            f"{', '.join(overruling)}: this overrules the precision of products, which is for the protocol alone to "
            "say; unset it, or choose with --precision"
        )


@functools.cache
def overruled(chosen: torch.device) -> tuple[str, ...]:
    """What overrules the precision of products in fp32 here; empty where they are what their name says.

    Variables count where they are set; all that a program can switch by what comes out of a product and a convolution.
    """
    values = {name: os.environ.get(name, "") for name in _PRECISION[chosen.type]}
    if variables := [f"{name}={value}" for name, value in values.items() if value.upper() not in ("", "STRICT")]:
        return tuple(variables)
    if (error := _fp32_error(chosen)) < _FP32_ERROR:
        return ()
    switched = []
    for name in _SWITCHES[chosen.type]:
        value = getattr(operator.attrgetter(name)(torch.backends), "fp32_precision", "none")  # since torch 2.9
        if value not in ("none", "ieee"):
            switched.append(f"torch.backends.{name}.fp32_precision = {value}")
    return tuple(switched) or (f"a product in fp32 is off by {error:.0e}",)


def _fp32_error(chosen: torch.device) -> float:
    """The largest error of a matrix product and a convolution in fp32, relative to the largest value."""
    generator = torch.Generator().manual_seed(0)
    usual: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    maps, kernels = (torch.randn(*shape, **usual) for shape in ((8, 64, 12, 12), (64, 64, 3, 3)))
    matrix = maps.reshape(-1, 256)
    errors = []
    products: tuple[tuple[Callable[..., torch.Tensor], torch.Tensor, torch.Tensor], ...]
    products = (torch.matmul, matrix, matrix.T), (torch.conv2d, maps, kernels)
    with torch.no_grad():
        for product, left, right in products:
            exact = product(left.double(), right.double())
            computed = product(left.to(chosen), right.to(chosen)).double().cpu()
            errors.append(float((computed - exact).abs().max() / exact.abs().max()))
    return max(errors)


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


@functools.cache
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
