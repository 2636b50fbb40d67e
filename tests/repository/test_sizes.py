"""A file is read in one sitting."""

from __future__ import annotations

from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
LIMITS = {"kd_methods": 420, "benchmarks": 420, "tests": 520}
"""Most lines of a Python file."""


@pytest.mark.parametrize("folder", LIMITS)
def test_no_file_is_too_long(folder: str) -> None:
    files = (REPO / folder).rglob("*.py")
    lengths = {str(path.relative_to(REPO)): path.read_text(encoding="utf-8").count("\n") for path in files}
    too_long = {path: length for path, length in lengths.items() if length > LIMITS[folder]}
    assert not too_long, "divide them by what they are about"
