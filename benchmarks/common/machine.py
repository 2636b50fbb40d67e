"""What of this machine's processor and main memory this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
"""Where Linux mounts control groups (version 2), by which schedulers and containers give a job its part."""

MOST_THREADS = 1024
"""Of a process: more than any machine has cores for, and fewer than its system refuses to start."""


def cores() -> int:
    """The processor's cores that this process may run on: a job's, not all of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main_memory() -> int:
    """Bytes of main memory: the machine's, or what the control groups of this process leave of it."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits()])


def _limits() -> list[int]:
    """The limits of the process's control group and of those that it lies in; none where there are no such groups."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    place = next((line.removeprefix("0::/") for line in groups if line.startswith("0::/")), None)
    if place is None:
        return []
    limits = []
    for group in (Path(place), *Path(place).parents):
        try:
            text = (_GROUPS / group / "memory.max").read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            limits.append(int(text))
    return limits
