"""The page of methods is what the cards say, and CONTRIBUTING's example works word for word."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.cli import descriptions as show
from benchmarks.cli.main import cli
from benchmarks.common.registry import Registry
from benchmarks.config.table_spec import absent_methods
from benchmarks.driver import engines
from benchmarks.networks import architectures
from benchmarks.tasks import get_task
from kd_methods import registry

REPO = Path(__file__).parents[2]
TEXT = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_page_of_methods_is_what_the_cards_say() -> None:
    page = (REPO / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == show.methods_page() + "\n", "run ./reproduce.sh show methods > docs/methods.md"


def test_the_page_names_every_method_and_setting() -> None:
    page = show.methods_page()
    for name in registry.available():
        section = page.split(f"### `{name}` ")[1].split("\n### ")[0]
        assert registry.card(name).formula in section
        assert all(f"`{key}`" in section for key in registry.get(name).Settings.model_fields)


def test_the_page_says_what_is_missing_and_why() -> None:
    page = show.methods_page().split("## Not here")[1]
    titles = {registry.card(name).title for name in registry.available()}
    for reason, names in absent_methods().items():
        assert reason in page and all(f"{name} ({source})" in page for name, source in names.items())
        assert not titles & set(names), "it is there by now"


@pytest.fixture
def example(tmp_path: Path) -> tuple[Path, str]:
    """A copy of the project with CONTRIBUTING's method in its place, and the method's name."""
    ((path, code),) = re.findall(r"```python\n# (kd_methods/\S+)\n(.*?)```", TEXT, re.S)
    for folder in ("kd_methods", "benchmarks", "tables", "tests"):
        shutil.copytree(REPO / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "pyproject.toml", tmp_path)
    (tmp_path / path).write_text(code, encoding="utf-8")
    return tmp_path, Path(path).stem


@pytest.fixture
def forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone afterwards."""
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(architectures, "NEWCOMERS", [])
    for kind in Registry.every.values():
        monkeypatch.setattr(kind, "_registered", dict(kind._registered))


@pytest.mark.usefixtures("forgetting")
def test_one_of_each_kind_as_contributing_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files as they stand there, in the table of its command."""
    files = re.findall(r"```(?:python|yaml)\n# (\w+\.(?:py|yaml))\b[^\n]*\n(.*?)```", TEXT, re.S)
    for name, text in files:
        (tmp_path / name).write_text(text, encoding="utf-8")
    (command,) = re.findall(r"^\./reproduce\.sh (own_table\.yaml (?:.*\\\n)*.*)", TEXT, re.M)
    monkeypatch.chdir(tmp_path)
    places = ["--output", "out", "--data-root", "data", "--checkpoints", "zoo", "--no-cost", "--device", "cpu"]
    result = CliRunner().invoke(cli, ["run", *command.replace("\\", "").split(), *places])
    assert result.exit_code == 0, (result.output, result.exception)
    cells = [json.loads(file.read_text())["cell"] for file in tmp_path.glob("out/runs/*/cell.json")]
    shipped = {"network", "network source", "task", "optimizer", "schedule", "engine", "tracker"}
    brought = {f"{kind}:{name}" for kind in Registry.every for name in Registry.every[kind].registered()}
    assert {name.partition(":")[0] for name in brought} == shipped == set(Registry.every) - {"task source"}
    assert engines.of(get_task("brightness")).name == "seeds"
    used = {name for cell in cells for name in cell["plugins"]}
    assert len(cells) == 3 and used == brought - {"engine:seeds", "tracker:lines"}
    told = [file.read_text().splitlines() for file in tmp_path.glob("out/lines/*.txt")]
    assert len(told) == 3 and all("losses/task" in epoch and state == "done" for epoch, state in told)


def run(folder: Path, *command: str) -> str:
    result = subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_the_example_of_contributing(example: tuple[Path, str]) -> None:
    """Its commands, with the interpreter at hand for reproduce.sh; the run of the table is planned only."""
    folder, name = example
    commands = [line.split()[1:] for line in TEXT.splitlines() if line.startswith("./reproduce.sh") and name in line]
    assert len(commands) == 3
    shown, tested, table = commands
    assert "+" in run(folder, "benchmarks", *shown).splitlines()[-1]
    summary = run(folder, "pytest", *tested[1:]).splitlines()[-1]
    assert int(re.match(r"(\d+) passed", summary)[1]) >= 15, summary  # type: ignore[index]
    run(folder, "benchmarks", *table, "--dry-run")
    assert name in run(folder, "benchmarks", "list")
    assert name in run(folder, "benchmarks", "show", "table", "table2")
    lint = subprocess.run([sys.executable, "-m", "ruff", "check", str(folder / "kd_methods")], cwd=folder)
    assert lint.returncode == 0
