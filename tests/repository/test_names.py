"""One name means one thing."""

from __future__ import annotations

import ast
import re
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


EMPTY = {"own", "found", "kept", "told"}
"""Words that say where a value comes from, and nothing of what it is."""
REPLACED = {
    "Member": "StudentRun", "Study": "TeacherPass", "TeacherStudy": "TeacherPass", "Lesson": "training_pass",
    "scenery": "the data of detection", "Sheet": "TableLayout", "wave": "stage", "grafted": "with_teacher_tail",
    "pace": "lr_at", "set_pace": "set_lr", "descend": "backward", "folded": "fold_batch_norms, or what it is",
    "inherit": "what makes one of two", "Around": "AnchorRelations", "Dense": "DenseOutputs", "Place": "LayerSite",
    }  # fmt: skip
"""Names that meant something else than their word does in the field, or two things, and what is said in their place."""
FIGURATIVE = re.compile(r"\b(hears?|heard|speaks?|spoke|spoken|told (?!apart|from))\b")
"""What code does not do; it gets, prints, reports, passes on."""
IN_CHECKPOINTS = {"kd_methods/detection/fgd.py own"}
"""Part of the keys of a method's tensors in checkpoints."""


def test_values_are_named_for_what_they_are() -> None:
    named = set()
    for folder in ("benchmarks", "kd_methods", "tests"):
        for file in (REPO / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                name = next(filter(None, (getattr(node, kind, "") for kind in ("id", "attr", "arg", "name"))), "")
                if name in EMPTY | REPLACED.keys():
                    named.add(f"{file.relative_to(REPO).as_posix()} {name}")
    assert named <= IN_CHECKPOINTS, REPLACED


def test_comments_and_docstrings_are_plain() -> None:
    lines = (
        f"{file.relative_to(REPO)}:{number}: {line.strip()}"
        for folder in ("benchmarks", "kd_methods")
        for file in (REPO / folder).rglob("*.py")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if FIGURATIVE.search(line)
    )
    assert not list(lines)
