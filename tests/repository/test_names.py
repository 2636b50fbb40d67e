"""One name means one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

REPO = Path(__file__).parents[2]
OF_EACH_FILE = {"Settings"}
"""What each file of a method has under this name: the registry relies on it."""


def test_no_two_classes_share_a_name() -> None:
    """Neither in the two packages, nor in the tests, nor across."""
    places = defaultdict(list)
    for folder in ("benchmarks", "kd_methods", "tests"):
        for file in (REPO / folder).rglob("*.py"):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and node.name not in OF_EACH_FILE:
                    places[node.name].append(str(file.relative_to(REPO)))
    assert not {name: files for name, files in places.items() if len(files) > 1}
