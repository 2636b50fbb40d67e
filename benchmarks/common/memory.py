"""Memory of the process: keeping what is freed, giving it back, and telling a lack of it from other errors."""

from __future__ import annotations

import ctypes
import errno
import functools
import re

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of malloc.h


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
