"""What the README shows works as shown."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch

import kd_methods
from benchmarks.common import plugins
from benchmarks.config.table_spec import load_table, table_names
from benchmarks.networks import build_network
from kd_methods import registry
from kd_methods.contract import Batch, DataInfo, Progress

REPO = Path(__file__).parents[2]
README = (REPO / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_method_of_ones_own_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    file = tmp_path / "logit_mse.py"
    file.write_text(BLOCKS[0])
    assert list(plugins.load([file])) == ["method:logit_mse"]
    student, teacher = (build_network(name, 10, (3, 16, 16)) for name in ("resnet8", "wrn_16_1"))
    method = kd_methods.build("logit_mse", student, teacher, DataInfo(num_samples=4, num_classes=10))
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    batch = Batch(images, labels, labels, torch.nn.functional.cross_entropy)
    with torch.no_grad():
        teacher_outputs = teacher(images, fields=())
    losses = method.losses(student(images, fields=method.needs.student), teacher_outputs, batch, Progress(1, 1))
    losses.total().backward()
    assert set(losses.terms()) == {"task", "mse"} and student.module.fc.weight.grad is not None


def test_the_lines_of_python_run() -> None:
    student, teacher = (build_network(name, 1000, (3, 16, 16)).module for name in ("resnet8", "wrn_16_1"))
    names = {"student": student, "teacher": teacher, "images": torch.randn(2, 3, 16, 16), "labels": torch.arange(2)}
    code = BLOCKS[1].replace("num_classes=1000", "num_classes=1000, input_shape=(3, 16, 16)")
    exec(code, {**names, "torch": torch, "epoch": 0, "epochs": 1})
    assert any(parameter.grad is not None for parameter in student.parameters())


PAGES = {"README.md": README, "CONTRIBUTING.md": (REPO / "CONTRIBUTING.md").read_text()} | {
    f"docs/{page.name}": page.read_text() for page in sorted((REPO / "docs").glob("*.md"))
}


def test_the_readme_is_one_page() -> None:
    lines = README.splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 165


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    paths = re.findall(r"(?<![\w/.])(?:kd_methods|benchmarks|tables|tests|requirements|docs)/[\w./*-]*", PAGES[page])
    examples = re.findall(r"^# (\S+\.py)$", PAGES[page], re.M)  # what the reader is to write
    for word in {word.rstrip("/.") for word in paths if "TABLE" not in word} - set(examples):
        assert list(REPO.glob(word)), word
    for target in re.findall(r"\]\(([\w./-]+?)(?:#[\w-]*)?\)", PAGES[page]):
        assert (REPO / page).parent.joinpath(target).exists(), target


def commands(text: str) -> list[list[str]]:
    """Every call of ./reproduce.sh, in a line of its own or within one, as words."""
    lines_of_commands = []
    for call in re.findall(r"\./reproduce\.sh ((?:[^#`\n]|(?<=\w)#)*)", text):
        lines_of_commands.append(re.sub(r"[\[\]|…]", " ", call).split())
    return lines_of_commands


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_exists(page: str) -> None:
    from benchmarks.cli.main import cli

    for words in commands(PAGES[page]):
        name, *rest = words
        if name in ("test", "FILE") or name.endswith(("…", ".")):
            continue
        command: click.Command = cli.commands.get(name) or cli.commands["run"]
        if name not in cli.commands:
            assert name in table_names() or name == "TABLE" or name.endswith(".yaml"), words
        if isinstance(command, click.Group) and rest:
            named = [
                command.commands[word] for word in rest if word in command.commands
            ]  # list fetch add: each of them
            assert rest[0] in command.commands, words
        else:
            named = [command]
        options = {option for one in named for parameter in one.params for option in parameter.opts}
        for word in rest:
            if word.startswith("--"):
                assert word.rstrip(".,;:").partition("=")[0] in options, f"{words} has no {word}"
        values = {option: value.rstrip(".,;:") for option, value in itertools.pairwise(rest) if option[:2] == "--"}
        preset = values.get("--preset", "")
        if name in table_names() and preset.isalnum() and not preset.isupper():
            load_table(name).preset(preset)


@pytest.mark.parametrize("words", [("list",), ("show", "table", "table2"), ("show", "protocol", "cifar100-crd240")])
def test_the_short_commands_run(words: tuple[str, ...]) -> None:
    result = subprocess.run([sys.executable, "-m", "benchmarks", *words], cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout
