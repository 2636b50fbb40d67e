"""What the README shows works as shown."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import click
import pytest
import torch
from helpers.command_line import Call

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
    assert len(lines) <= 120 and max(map(len, lines)) <= 160


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


ANSWERS = {("list",), ("cite",), ("doctor",), ("teachers", "list")} | {
    ("show", what) for what in ("table", "protocol", "method", "methods")
}
"""What needs no data, no store, no file of the reader's and no minutes, by the first words of a command."""
EXAMPLES = {"TABLE": ["table2"], "table NAME": ["table", "table2"], "protocol NAME": ["protocol", "cifar100-crd240"],
            "method NAME": ["method", "kd"]}  # fmt: skip
"""What stands for something of the reader's choice, and an example of it."""


def short_commands() -> list[str]:
    """The documents' commands that can be run here: answers, and the demonstrations of tables as dry runs.

    Without what is optional, and of alternatives (``a|b``) each; not those with the reader's files or a tracker.
    """
    short = set()
    for page, text in PAGES.items():
        if page == "CONTRIBUTING.md":  # whose commands run where its files are: test_docs.py
            continue
        for call in re.findall(r"\./reproduce\.sh ([^#`\n>]*)", text):
            words = re.sub(r"\[[^]]*\]|…", "", call).split()
            for chosen in itertools.product(*(word.split("|") for word in words)):
                for form, example in EXAMPLES.items():
                    chosen = f" {' '.join(chosen)} ".replace(f" {form} ", f" {' '.join(example)} ").split()
                if "--track" in chosen or any(word.isupper() or word.endswith(".py") for word in chosen):
                    continue
                if chosen[0] in table_names() and "demo" in chosen:
                    short.add(" ".join(dict.fromkeys([*chosen, "--dry-run"])))
                elif (tuple(chosen[:1]) in ANSWERS or tuple(chosen[:2]) in ANSWERS) and "--check" not in chosen:
                    short.add(" ".join(chosen))
    return sorted(short)


@pytest.mark.parametrize("command", short_commands())
def test_the_short_commands_run(command: str, call: Call) -> None:
    code, out, err = call(*command.split())
    assert code == 0 and out + err, err


def test_there_are_short_commands_of_each_kind() -> None:
    firsts = {command.split()[0] for command in short_commands()}
    assert {"list", "show", "cite", "doctor", "teachers", "table2", "table4", "table5"} <= firsts
