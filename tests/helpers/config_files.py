"""A small table and a small protocol, and the line with which a changed one is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kd_methods.errors import UserError

TABLE = """\
name: mine
title: "My table"
pairs: [resnet8-resnet8]
methods: [kd]
presets:
  paper: {protocol: digits-demo, seeds: [0]}
"""

PROTOCOL = """\
extends: digits-demo
name: mine
version: 1
epochs: 4
"""


def message(load: Callable[[str], object], path: Path, text: str) -> str:
    """The one line with which a file is refused."""
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(str(path))
    line = str(caught.value)
    assert "\n" not in line and str(path) in line
    return line
