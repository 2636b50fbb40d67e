"""A shell completes tables, presets, rows, columns and methods, and waits for nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from benchmarks.cli.completion import VARIABLE
from benchmarks.cli.main import cli

REPO = Path(__file__).parents[2]


def completed(*words: str) -> list[str]:
    *before, incomplete = words
    completions = ShellComplete(cli, {}, "kdbench", VARIABLE).get_completions(before, incomplete)
    return [item.value for item in completions]


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (("table2",), ["table2"]),
        (("expl",), ["explain"]),
        (("render", "table2"), ["table2"]),
        (("table2", "--preset", "d"), ["demo"]),
        (("table2", "--methods", "student,block_kd.l"), ["student,block_kd.lite"]),
        (("table2", "--methods", "reviewkd+"), ["reviewkd+dkd"]),
        (("table2", "--pairs", "ResNet50-v"), ["ResNet50-vgg8"]),
        (("table2", "--preset", "demo", "--pairs", "wrn_16_2"), ["wrn_16_2-resnet8"]),
        (("convert", "--to", "mm"), ["mmdet"]),
        (("convert", "--all", "table2"), ["table2"]),
    ],
)  # fmt: skip
def test_words_are_completed(words: tuple[str, ...], answers: list[str]) -> None:
    values = completed(*words)
    assert set(answers) <= set(values) and all(word.startswith(words[-1]) for word in values)


def test_what_stands_before_the_comma_is_not_offered_again() -> None:
    assert "student,kd,dkd" in completed("table2", "--methods", "student,kd,")
    assert "student,kd,kd" not in completed("table2", "--methods", "student,kd,")


def test_the_shell_is_answered_without_torch() -> None:
    code = (
        "import sys; from benchmarks.cli.main import main; main(); "
        "heavy = {'torch', 'pandas', 'numpy', 'rich'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )

    def asked(instruction: str, **words: str) -> str:
        environment = {**os.environ, VARIABLE: instruction, **words}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    script = asked("bash_source")
    assert f"{VARIABLE}=bash_complete" in script and "complete -o nosort" in script
    assert "plain,demo" in asked("bash_complete", COMP_WORDS="kdbench table2 --preset d", COMP_CWORD="3")
    assert asked("bash_complete", COMP_WORDS="kdbench no_table --preset d", COMP_CWORD="3") == ""
