"""Rooms import only rooms below them, and none lies in a circle."""

from __future__ import annotations

import ast
from pathlib import Path
from xml.etree import ElementTree

import pytest

REPO = Path(__file__).parents[2]
ROOMS = (
    "cli", "suites", "detection", "driver", "cost", "analysis", "report", "training", "teachers", "store", "tasks",
    "networks", "config", "common",
)  # fmt: skip
"""From the top floor down, as docs/architecture.md has them."""


def imports(file: Path) -> set[tuple[str, ...]]:
    """The modules, as parts of their dotted names, that a file imports anywhere: also in functions, also for types."""
    package = file.relative_to(REPO).parent.parts
    modules: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            modules |= {(*module, alias.name) for alias in node.names}
    return modules


LIBRARY = (
    "detection", "text", "blockwise", "logit", "relation", "feature", "analysis", "functional", "views", "contract",
)  # fmt: skip
"""The same for the library: families of methods, and what they stand on."""

DRIVER = ("planning", "execution", "engines", "trackers")
"""The same for the folders of the driver."""

REPORT = ("site", "figures", "formats", "layouts")
"""And for those of the report: what a table says comes before how it is written."""


def files(room: str) -> list[Path]:
    return sorted((REPO / "benchmarks" / room).rglob("*.py"))


def test_every_folder_is_a_room() -> None:
    folders = {path.name for path in (REPO / "benchmarks").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ROOMS)
    top = {path.name for path in (REPO / "benchmarks").glob("*.py")}
    assert top == {"__init__.py", "__main__.py", "conftest.py", "timm_models.py"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    below = ROOMS[ROOMS.index(room) :]
    upward = {
        f"{file.relative_to(REPO)}: {'.'.join(module)}"
        for file in files(room)
        for module in imports(file)
        if module[0] == "benchmarks" and len(module) > 1 and module[1] in ROOMS and module[1] not in below
    }
    assert not upward


def test_the_library_knows_nothing_of_the_suite() -> None:
    for file in (REPO / "kd_methods").rglob("*.py"):
        assert not [module for module in imports(file) if module[0] == "benchmarks"], file


@pytest.mark.parametrize("room", LIBRARY)
def test_a_room_of_the_library_imports_only_rooms_below_it(room: str) -> None:
    below = LIBRARY[LIBRARY.index(room) :]
    for file in (REPO / "kd_methods" / room).rglob("*.py"):
        rooms = {module[1] for module in imports(file) if module[0] == "kd_methods" and len(module) > 1}
        assert not rooms & set(LIBRARY) - set(below), file


@pytest.mark.parametrize(
    ("room", "folder", "order"),
    [*(("driver", folder, DRIVER) for folder in DRIVER), *(("report", folder, REPORT) for folder in REPORT)],
)
def test_a_folder_of_a_room_imports_only_those_below_it(room: str, folder: str, order: tuple[str, ...]) -> None:
    below = order[order.index(folder) :]
    for file in files(f"{room}/{folder}"):
        folders = {module[2] for module in imports(file) if module[:2] == ("benchmarks", room) and len(module) > 2}
        assert not folders & set(order) - set(below), file


def test_imports_within_the_suite_are_relative() -> None:
    """So that the same folder can be installed under another name. (pytest imports its own files by path.)"""
    for file in (REPO / "benchmarks").rglob("*.py"):
        if file.name.startswith("test_") or file.name == "conftest.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module and node.module.split(".")[0] != "benchmarks", f"{file} line {node.lineno}"


def test_the_pictures_have_the_order() -> None:
    drawn = ElementTree.parse(REPO / "docs" / "house.svg").iter("{http://www.w3.org/2000/svg}text")
    names = [text.text for text in drawn if text.get("class") == "name" and text.text in ROOMS]
    assert names == list(ROOMS)
    text = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
    places = [text.index(f"    {room}/") for room in ROOMS]
    assert places == sorted(places)


TWO_AS_ONE = (
    {"benchmarks.config.protocol", "benchmarks.config.schedules", "benchmarks.config.schedules.schedule"},
    {"kd_methods.views.network", "kd_methods.views.teacher_tail"},
)
"""Files that know each other: a schedule is a function of the protocol that names it; a view makes the network with its
teacher's tail, which is a view."""


def test_no_files_lie_in_a_circle() -> None:
    """Counting every import, also those in functions and for types."""
    modules = {
        ".".join(file.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__"): file
        for package in ("benchmarks", "kd_methods")
        for file in (REPO / package).rglob("*.py")
        if not file.name.startswith("test_") and file.name not in ("__main__.py", "conftest.py")
    }
    graph = {}
    for name, file in modules.items():
        names = [".".join(module) for module in imports(file)]
        # What is imported from a package is one of its files, or a name in its __init__.
        targets = {full if full in modules else full.rpartition(".")[0] for full in names}
        graph[name] = (targets & set(modules)) - {name}
    leaves = True
    while leaves:
        leaves = {name for name, targets in graph.items() if not targets}
        graph = {name: targets - leaves for name, targets in graph.items() if name not in leaves}
    # What is left lies in a circle, or leads to one.
    circles = {name for name in graph if _leads_to(graph, name, name)}
    assert circles <= set().union(*TWO_AS_ONE), sorted(circles)


def _leads_to(graph: dict[str, set[str]], start: str, end: str) -> bool:
    seen, ahead = set[str](), list(graph[start])
    while ahead:
        if (name := ahead.pop()) == end:
            return True
        if name not in seen:
            seen.add(name)
            ahead += graph.get(name, ())
    return False
