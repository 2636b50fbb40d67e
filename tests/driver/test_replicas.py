"""Cells whose batches two processes share: from the command line, killed, stopped and resumed to the same bits."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest
from helpers.user_folder import PLUGIN, UserFolder, children, until

CHOSEN = ("--pairs", "resnet14-resnet8", "--seeds", "0", "--no-cost", "--workers", "1", "--processes", "2")
METHODS = "[student, kd, rkd, crd, letkd1, block_kd]"
"""Means over samples, relations, banks, what is prepared, block-wise."""


def folder(path: Path, epochs: int = 1, methods: str = METHODS) -> UserFolder:
    made = UserFolder(path)
    made.protocol.write_text(made.protocol.read_text().replace("epochs: 1", f"epochs: {epochs}"))
    made.table.write_text(made.table.read_text().replace("[student, kd, block_kd]", methods))
    return made


def students(made: UserFolder) -> dict[str, str]:
    files = (made.output / "runs").glob("*/student.pt")
    return {file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.slow
def test_killed_stopped_and_resumed_the_bits_are_the_same(tmp_path: Path) -> None:
    undisturbed, disturbed = folder(tmp_path / "one", 3, "[kd, crd]"), folder(tmp_path / "two", 3, "[kd, crd]")
    code, out, err = undisturbed.run(*CHOSEN, "--sync-bn")
    assert code == 0 and "batch statistics, synchronised, and relations are those of" in out, err

    process = disturbed.start(str(disturbed.table), "--preset", "demo", *disturbed.places, *CHOSEN, "--sync-bn")

    def training() -> bool:
        return len(children(process)) == 2 and any(x["state"] == "running" and x["epoch"] for x in disturbed.statuses())

    for which in (1, 0):  # one beside the first, then the first
        until(training, process)
        os.kill(children(process)[which], signal.SIGKILL)
        until(lambda: not training(), process)
    until(training, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.count("a process was lost (killed by SIGKILL)") == 2, err
    assert "Traceback" not in err

    code, _, err = disturbed.run(*CHOSEN, "--sync-bn")
    assert code == 0, err
    assert students(undisturbed) == students(disturbed) and len(students(disturbed)) == 3


@pytest.mark.slow
def test_twenty_steps_of_each_kind_of_method(tmp_path: Path) -> None:
    table = folder(tmp_path, 4)
    code, out, err = table.run(*CHOSEN)
    assert code == 0, err
    assert len(students(table)) == 7 and "each batch on 2 processes" in out


@pytest.mark.slow
def test_twenty_steps_of_texts(tmp_path: Path) -> None:
    """Of logits, of the last layer's attention, of hidden states."""
    pytest.importorskip("transformers", reason="the extra [text] is not installed")
    table = folder(tmp_path, methods="[student, kd, minilm, pkd_patient]")
    twelve_steps_each = 'epochs: 2\nbatch_size: 256\nteachers_from: ""\n'
    table.protocol.write_text(f"extends: grammar-demo\nname: two-epochs\nversion: 1\n{twelve_steps_each}")
    table.table.write_text(table.table.read_text().replace("resnet14-resnet8", "bert_l4_h64-bert_l2_h64"))
    chosen = ["bert_l4_h64-bert_l2_h64" if word == "resnet14-resnet8" else word for word in CHOSEN]
    code, out, err = table.run(*chosen)
    assert code == 0, err
    assert len(students(table)) == 5 and "each batch on 2 processes" in out


@pytest.mark.slow
def test_a_plugin_that_changes_between_two_cells_ends_the_run(tmp_path: Path) -> None:
    """Each cell has processes of its own, which read it again: what they computed would have the key of the old one."""
    made = folder(tmp_path, 4)
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    chosen = ["0,1" if word == "0" else word for word in CHOSEN]
    arguments = (
        str(made.table),
        "--preset",
        "demo",
        *made.places,
        *chosen,
        "--plugin",
        str(plugin),
        "--methods",
        "mine",
    )
    process = made.start(*arguments)
    until(lambda: [x for x in made.statuses() if x["state"] == "running" and len(students(made)) == 1], process)
    plugin.write_text(PLUGIN + "# changed\n")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "the plugin of method:mine has changed since the run began" in err, err
    assert len(students(made)) == 2, "the teacher and the student that had begun"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_method_that_fails_in_one_process_alone_fails_its_cell(tmp_path: Path, rank: int) -> None:
    """The other one waits for gradients that never come, and is ended."""
    made, plugin = folder(tmp_path), tmp_path / "mine.py"
    failing = f'        if torch.distributed.get_rank() == {rank}:\n            raise ValueError("here alone")\n'
    head, losses = "import kd_methods\n", "    def losses(self, student, teacher, batch, progress):\n"
    plugin.write_text(PLUGIN.replace(head, f"import torch\n{head}", 1).replace(losses, losses + failing))
    code, out, err = made.run(*CHOSEN, "--plugin", str(plugin), "--methods", "mine")
    assert code == 1 and "ValueError: here alone" in out + err, err
    assert sorted(status["state"] for status in made.statuses()) == ["done", "failed"]
