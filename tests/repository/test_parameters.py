"""Functions take few parameters."""

from __future__ import annotations

import ast
from pathlib import Path

REPO = Path(__file__).parents[2]
MOST = 6
ELSEWHERE = (
    "benchmarks/cli/", "benchmarks/detection/networks/mmcv_ops.py", "benchmarks/training/replicas/synchronised.py",
    "kd_methods/functional/", "benchmarks/suites/test_",
)  # fmt: skip
"""Whose parameters are others': options, fixtures, an operator's, a formula's."""
LEFT = {"kd_methods/distiller.py __init__"}
"""The library's entry: each keyword is a fact about a task that only its user knows, and most have a default."""


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The names that a caller gives."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def test_no_function_takes_more_than_six() -> None:
    many = set()
    for package in ("benchmarks", "kd_methods"):
        for file in (REPO / package).rglob("*.py"):
            place = file.relative_to(REPO).as_posix()
            if place.startswith(ELSEWHERE):
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(parameters(node)) > MOST:
                    many.add(f"{place} {node.name}")
    assert many <= LEFT, f"more than {MOST} parameters: {sorted(many - LEFT)}"
