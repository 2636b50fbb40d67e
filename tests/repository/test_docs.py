"""The page of methods is what the cards say, and CONTRIBUTING's example works word for word."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.command_line import Call

from benchmarks.cli import descriptions as show
from benchmarks.cli import yaml_keys
from benchmarks.cli.main import cli
from benchmarks.common.registry import Registry
from benchmarks.config.published import absent_methods
from benchmarks.config.table_spec import Matrix
from benchmarks.driver import engines
from benchmarks.networks import architectures
from benchmarks.tasks import get_task
from benchmarks.teachers.zoo import Zoo
from kd_methods import registry
from kd_methods.strict import Strict

REPO = Path(__file__).parents[2]
TEXT = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_page_of_methods_is_what_the_cards_say() -> None:
    page = (REPO / "docs" / "methods.md").read_text(encoding="utf-8")
    assert page == show.methods_page() + "\n", "run ./reproduce.sh show methods > docs/methods.md"


def test_copies_of_published_teachers_are_added_under_their_entries_names() -> None:
    """Under another name the file is one's own teacher, and no published value is compared with its students."""
    pages = "".join(
        (REPO / "docs" / page).read_text(encoding="utf-8") for page in ("getting-started.md", "teachers.md")
    )
    names = re.findall(r"teachers add (\S+) ckpt_epoch_240.pth", pages)
    assert len(names) == 2 and set(names) <= set(Zoo(Path()).shipped)


def test_the_page_of_keys_is_what_checks_them_and_leaves_none_without_a_word() -> None:
    text = (REPO / "docs" / "yaml.md").read_text(encoding="utf-8")
    assert text == yaml_keys.page() + "\n", "run ./reproduce.sh show keys > docs/yaml.md"
    for described in (yaml_keys.TABLE | yaml_keys.PROTOCOL).values():
        assert [name for name, field in described.model_fields.items() if not field.description] == []
    checked = {model for model in Strict.__subclasses__() if model.__module__.startswith("benchmarks.config")}
    checked |= {model for parent in checked for model in parent.__subclasses__()}
    written = {
        model for model in checked if model.__module__.rpartition(".")[2] in ("protocol", "recipe", "table_spec")
    }
    assert {*yaml_keys.TABLE.values(), *yaml_keys.PROTOCOL.values()} == written - {Matrix}


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


def forget_newcomers() -> None:
    """The suite's own methods stay registered: their modules are loaded, and are not loaded again."""
    for name in registry._classes.keys() - registry.index().keys():
        del registry._classes[name]


@pytest.fixture
def example(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """CONTRIBUTING's method as one more file of its folder, and the method's name."""
    ((folder, name, code),) = re.findall(r"```python\n# kd_methods/(\w+)/(\w+)\.py\n(.*?)```", TEXT, re.S)
    file = tmp_path / f"{name}.py"
    file.write_text(code, encoding="utf-8")
    package = importlib.import_module(f"kd_methods.{folder}")
    # What lists the methods when it is imported is imported anew, here and after this test.
    listing = ("helpers.method_setup", "test_every_method", f"kd_methods.{folder}.{name}")
    before = {module: sys.modules.pop(module, None) for module in listing}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        registry.index.cache_clear()
        yield file, name
    registry.index.cache_clear()
    forget_newcomers()
    for module, loaded in before.items():
        sys.modules.pop(module, None)
        if loaded:
            sys.modules[module] = loaded


@pytest.fixture
def forgetting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone afterwards."""
    monkeypatch.setattr(architectures, "NEWCOMERS", [])
    for kind in Registry.every.values():
        monkeypatch.setattr(kind, "_registered", dict(kind._registered))
    yield
    forget_newcomers()


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
    shipped = {"network", "network source", "task", "task source", "optimizer", "schedule", "engine", "tracker"}
    brought = {f"{kind}:{name}" for kind in Registry.every for name in Registry.every[kind].registered()}
    assert {name.partition(":")[0] for name in brought} == shipped == set(Registry.every)
    assert engines.of(get_task("brightness")).name == "seeds"
    used = {name for cell in cells for name in cell["plugins"]}
    assert len(cells) == 6 and used == brought - {"engine:seeds", "tracker:lines"}
    tracked = [file.read_text().splitlines() for file in tmp_path.glob("out/lines/*.txt")]
    assert len(tracked) == 6 and all("losses/task" in epoch and state == "done" for epoch, state in tracked)
    table, *words = command.replace("\\", "").split()
    plugins = [word for option, word in itertools.pairwise(words) if option == "--plugin"]
    again = [table, *itertools.chain(*(("--plugin", plugin) for plugin in plugins)), "--output", "out"]
    again += [f"--preset={word}" for option, word in itertools.pairwise(words) if option == "--preset"]
    for shown in ("render", "verdicts"):  # in a process that knows nothing of them yet
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", shown, *again], env={**os.environ, "PYTHONPATH": str(REPO)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


class PassedTests:
    """A plugin of pytest's that counts the tests that passed."""

    passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed += report.when == "call" and report.passed


def test_the_example_of_contributing(example: tuple[Path, str], call: Call) -> None:
    """Its commands word for word, in this process; the run of the table is planned only."""
    file, name = example
    commands = [line.split()[1:] for line in TEXT.splitlines() if line.startswith("./reproduce.sh") and name in line]
    shown, (test, *selected), table = commands

    def said(*words: str) -> str:
        code, out, err = call(*words)
        assert code == 0, err
        return out + err

    assert "+" in said(*shown).splitlines()[-1]
    assert name in said(*table, "--dry-run")
    assert name in said("list")
    assert name in said("show", "table", "table2")
    passed_tests = PassedTests()
    options = ["-p", "no:cacheprovider", "-p", "no:faulthandler", "--rootdir", str(REPO)]
    file_of_tests, *rest = selected
    assert test == "test" and pytest.main([*options, str(REPO / file_of_tests), *rest], [passed_tests]) == 0
    assert passed_tests.passed >= 15
    lint = [sys.executable, "-m", "ruff", "check", "--config", str(REPO / "pyproject.toml"), str(file)]
    assert subprocess.run(lint).returncode == 0
