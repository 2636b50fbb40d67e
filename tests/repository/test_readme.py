"""What the README shows works as shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kd_methods
from benchmarks.common import plugins
from benchmarks.config.table_spec import table_names
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
        kept = teacher(images, fields=())
    losses = method.losses(student(images, fields=method.needs.student), kept, batch, Progress(1, 1))
    losses.total().backward()
    assert set(losses.terms()) == {"task", "mse"} and student.module.fc.weight.grad is not None


def test_the_lines_of_python_run() -> None:
    code = "import torch\nimages = torch.randn(2, 3, 32, 32)\n" + BLOCKS[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_command_and_file_exists() -> None:
    for word in re.findall(r"(?<![\w/])(?:kd_methods|benchmarks|tables|tests|requirements)/[\w./*]*", README):
        assert list(REPO.glob(word.rstrip("/."))), word
    from benchmarks.cli.main import cli

    known = {*cli.commands, *table_names(), "TABLE", "test"}
    assert set(re.findall(r"\./reproduce\.sh ([\w-]+)", README)) <= known
