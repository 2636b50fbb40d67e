"""What `pip install .` gives works from any folder, also from one that has its own `benchmarks`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_installed_package_lists_and_runs(tmp_path: Path) -> None:
    pytest.importorskip("pip", reason="an environment made by uv has no pip")
    source, site, user = tmp_path / "source", tmp_path / "site", tmp_path / "user"
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for folder in ("benchmarks", "kd_methods", "tables"):
        shutil.copytree(REPO / folder, source / folder, ignore=ignored)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPO / file, source)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*pip, str(source)], check=True)
    (user / "benchmarks").mkdir(parents=True)
    (user / "benchmarks" / "__init__.py").write_text("raise SystemExit('the wrong one')")

    def kdbench(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(site / "bin" / "kdbench"), *words]
        done = subprocess.run(command, cwd=user, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "ok    kd" in kdbench("doctor", "--check", "--methods", "kd")
    assert "table2" in kdbench("list") and "cifar100-crd240" in kdbench("show", "protocol", "cifar100-crd240")
    words = ("--methods", "student", "--pairs", "vgg11-vgg8", "--seeds", "0", "--epochs", "1", "--no-cost")
    assert "Student (no KD)" in kdbench("table1", "--preset", "demo", *words)
    assert (user / "results" / "tables").is_dir(), "the current folder is where an installed suite works"
