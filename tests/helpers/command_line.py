"""The command line, in this process or in one of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).parents[2]
Call = Callable[..., tuple[int, str, str]]
"""The fixture ``call``: words of a command to its exit code, stdout and stderr."""


def refused(call: Call, *arguments: str | Path) -> str:
    """The one line with which a command is refused."""
    code, out, err = call(*arguments)
    assert (code, out) == (2, ""), (code, out, err)
    assert err.startswith("error: ") and err.endswith("\n") and len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    return err.strip()


def python(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-m", "benchmarks", *arguments],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
    )
