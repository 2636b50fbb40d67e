"""A disk that fills up under workers: one line, and what was computed is kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.user_folder import REPO, UserFolder
from test_workers import CHOSEN, students

SCRIPT = """\
set -eu
mount -t tmpfs -o size=3m tmpfs "$RESULTS"
run() { code=0; "$@" >>"$FOLDER/out" 2>"$FOLDER/err-$count" || code=$?; echo $code >"$FOLDER/code-$count"; }
count=1; run "$@"
cp -a "$RESULTS" "$FOLDER/full"
mount -o remount,size=200m "$RESULTS"
count=2; run "$@"
cp -a "$RESULTS/." "$FOLDER/kept"
"""
"""A file system of 3 MiB, which holds some runs of seven; when it is full it is made larger."""
PRIVATE = ("unshare", "--user", "--map-root-user", "--mount")


@pytest.mark.slow
def test_a_full_disk_under_workers_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    if subprocess.run([*PRIVATE, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("a file system of one's own needs user namespaces, which this machine does not allow")
    one, two = UserFolder(tmp_path / "one"), UserFolder(tmp_path / "two")
    assert one.run("--workers", "1", *CHOSEN)[0] == 0
    two.output.mkdir()
    command = [sys.executable, "-m", "benchmarks", str(two.table), "--preset", "demo", *two.places, "--workers", "2"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    environment |= {"RESULTS": str(two.output), "FOLDER": str(two.folder)}
    script = [*PRIVATE, "bash", "-c", SCRIPT, "bash", *command, *CHOSEN]
    subprocess.run(script, env=environment, cwd=two.folder, check=True, timeout=300)

    errors = [(two.folder / f"err-{count}").read_text() for count in (1, 2)]
    codes = [(two.folder / f"code-{count}").read_text().strip() for count in (1, 2)]
    assert codes == ["2", "0"], errors
    last = errors[0].splitlines()[-1]
    assert last.startswith("error: cannot write ") and "No space left on device" in last and "free space" in last
    assert "2 workers on cpu" in errors[0] and "Traceback" not in "".join(errors)

    finished = {file.parent.name: file for file in (two.folder / "full" / "runs").glob("*/student.pt")}
    assert finished, "some cells ended before the disk was full"
    shutil.rmtree(two.output)
    shutil.move(two.folder / "kept", two.output)
    for run, file in finished.items():
        again = two.output / "runs" / run / "student.pt"
        assert (again.stat().st_mtime_ns, again.read_bytes()) == (file.stat().st_mtime_ns, file.read_bytes())
    assert students(one) == students(two) and len(students(two)) == 7
    assert not list(two.output.rglob("*.kdbench-partial"))
