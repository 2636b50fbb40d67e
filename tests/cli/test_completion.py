"""A shell completes tables, presets, rows, columns and methods, and waits for nothing heavy."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
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


SCRIPT = f'eval "$({VARIABLE}=SHELL_source ./reproduce.sh)"'
"""As docs/paper-tables.md has it."""


def in_fish(line: str, folder: Path, environment: dict[str, str]) -> str:
    """The line with its only completion."""
    code = f"{SCRIPT.replace('SHELL', 'fish')}; complete -C {line!r}"
    done = subprocess.run(["fish", "-c", code], cwd=REPO, env=environment, capture_output=True, text=True)
    (answer,) = done.stdout.splitlines()
    return f"{line.rpartition(' ')[0]} {answer.partition(chr(9))[0]}"


def in_zsh(line: str, folder: Path, environment: dict[str, str]) -> str:
    """What stands in the line after a tab, in a terminal."""
    seen = folder / "line"
    written = f"print -rn -- $BUFFER > {seen}.tmp && mv {seen}.tmp {seen}"
    widget = f"seen() {{ {written} }}; zle -N seen; bindkey '^X' seen"
    (folder / ".zshrc").write_text(f"autoload -U compinit; compinit -u -D; {SCRIPT.replace('SHELL', 'zsh')}; {widget}")
    start = time.monotonic()
    terminal, end = pty.openpty()
    zsh = subprocess.Popen(
        ["zsh", "-i"], cwd=REPO, env=environment, stdin=end, stdout=end, stderr=end, start_new_session=True
    )
    try:
        os.write(terminal, f"{line}\t\x18".encode())
        while not seen.exists() and zsh.poll() is None and time.monotonic() < start + 60:
            time.sleep(0.05)
    finally:
        zsh.kill()
        zsh.wait()
        os.close(terminal)
        os.close(end)
    return seen.read_text().strip()


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("./reproduce.sh table2 --preset d", "demo"),
        ("./reproduce.sh table2 --methods student,block_kd.l", "student,block_kd.lite"),
        ("./reproduce.sh ./benchm", "./benchmarks/"),
    ],
)
@pytest.mark.parametrize("shell", ["fish", "zsh"])
def test_a_shell_goes_on_with_a_word(shell: str, line: str, answer: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    home = {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "TERM": "dumb"}
    chosen = {"KDBENCH_NO_VENV": "1", "KDBENCH_PYTHON": sys.executable}
    ask: Callable[[str, Path, dict[str, str]], str] = {"fish": in_fish, "zsh": in_zsh}[shell]
    assert ask(line, tmp_path, {**os.environ, **home, **chosen}) == f"{line.rpartition(' ')[0]} {answer}"
