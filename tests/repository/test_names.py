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


EMPTY = {"own", "found", "kept"}
"""Words that say where a value comes from, and nothing of what it is."""
IN_CHECKPOINTS = {"kd_methods/detection/fgd.py own"}
"""Part of the keys of a method's tensors in checkpoints."""


def test_values_are_named_for_what_they_are() -> None:
    named = set()
    for folder in ("benchmarks", "kd_methods", "tests"):
        for file in (REPO / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                name = getattr(node, "id", "") or getattr(node, "attr", "") or getattr(node, "arg", "")
                if name in EMPTY or getattr(node, "name", "") in EMPTY:
                    named.add(f"{file.relative_to(REPO).as_posix()} {name or getattr(node, 'name', '')}")
    assert named <= IN_CHECKPOINTS
