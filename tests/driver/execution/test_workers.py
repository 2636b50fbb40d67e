"""Groups trained in worker processes: the same bits, whoever is killed and whenever one stops."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import Call
from helpers.user_folder import UserFolder, children, until

from benchmarks.driver.engines import local
from benchmarks.training.failures import Interrupted

CHOSEN = ("--pairs", "resnet14-resnet8", "--seeds", "0,1", "--no-cost")


def students(bench: UserFolder) -> dict[str, str]:
    """Digests of all final weights, by the folder of their run."""
    files = (bench.output / "runs").glob("*/student.pt")
    return {file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def longer(bench: UserFolder) -> UserFolder:
    """With epochs enough to do something while it runs."""
    bench.protocol.write_text(bench.protocol.read_text().replace("epochs: 1", "epochs: 6"))
    return bench


SERVED = """\
import time
from pathlib import Path
Path("imports").touch()
time.sleep(0.5)

def work(send):
    send("there")
"""
INTERRUPTED = """\
import os, signal, time
from pathlib import Path
from benchmarks.common.process import children
signal.signal(signal.SIGINT, lambda *_: None)
children.preload("served")
while not Path("imports").exists():
    time.sleep(0.01)
os.killpg(0, signal.SIGINT)
from served import work
print(children.Child(work).answer())
"""


def test_a_stop_while_workers_are_being_prepared_leaves_their_server_alive(tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(SERVED)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=120, start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "there\n", "")


def threads(bench: UserFolder) -> list[int]:
    """Those that each run was computed with."""
    files = (bench.output / "runs").glob("*/environment.json")
    return [computed["arithmetic"]["threads"] for file in files for computed in json.loads(file.read_text())]


SMALL = ("--pairs", "resnet14-resnet8", "--methods", "student", "--no-cost")
"""A group of one cell, without a teacher, for each seed."""


@pytest.mark.parametrize(
    ("said", "count"), [((), 1), pytest.param(("--threads", "2"), 2, marks=pytest.mark.slow)], ids=["usual", "two"]
)
def test_two_workers_end_in_the_bits_of_one_process_with_as_many_threads(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, said: tuple[str, ...], count: int
) -> None:
    """On a CPU one, however many cores there are, where neither an option nor a variable says more."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    one, two = UserFolder(tmp_path / "one"), UserFolder(tmp_path / "two")
    for bench, workers in ((two, "2"), (one, "1")):
        torch.set_num_threads(3 - count)
        asked = (*bench.places, "--workers", workers, "--seeds", "0,1", *SMALL, *said)
        code, _, err = call(bench.table, "--preset", "demo", *asked)
        assert code == 0 and ("2 workers on cpu" in err) == (workers == "2"), err
        assert threads(bench) == [count] * 2
    assert students(one) == students(two) and len(students(two)) == 2


@pytest.mark.parametrize("option", [True, False], ids=["option", "variable"])
def test_there_are_as_many_threads_as_are_asked_for(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, option: bool
) -> None:
    """Stopped before the first step: threads that wait for each other crawl on a busy machine."""

    def stopped(*_: Any) -> None:
        raise Interrupted

    monkeypatch.setattr(local, "train", stopped)
    monkeypatch.setenv("OMP_NUM_THREADS", "3" if option else "2")
    bench, said = UserFolder(tmp_path), ("--threads", "2") if option else ()
    code, _, err = call(bench.table, "--preset", "demo", *bench.places, "--seeds", "0", *SMALL, *said)
    assert code == 130 and threads(bench) == [2], err


@pytest.mark.slow
def test_workers_end_in_the_bits_of_one_process(tmp_path: Path) -> None:
    one, two = UserFolder(tmp_path / "one"), UserFolder(tmp_path / "two")
    assert one.run("--workers", "1", *CHOSEN)[0] == 0
    code, out, err = two.run("--workers", "2", *CHOSEN)
    assert code == 0 and "2 workers on cpu" in err, err
    assert students(one) == students(two) and len(students(two)) == 7
    assert one.files()["tiny.md"] == two.files()["tiny.md"] and out.strip() == two.files()["tiny.md"].decode().strip()


@pytest.mark.slow
def test_workers_train_on_texts_that_nobody_has_tokenised_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a newcomer's do: with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    demo = UserFolder(tmp_path / "demo")
    chosen = ("--pairs", "bert_l4_h64-bert_l2_h32", "--methods", "student", "--seeds", "0,1", "--no-cost")
    code, _, err = demo.call("table5", "--preset", "demo", *demo.places, "--workers", "2", *chosen)
    assert code == 0 and "2 workers on cpu" in err, err
    assert len(list((tmp_path / "cache").rglob("*.pt"))) == 2


@pytest.mark.slow
def test_a_killed_worker_hurts_nobody_and_a_stop_stops_all(tmp_path: Path) -> None:
    one, two = longer(UserFolder(tmp_path / "one")), longer(UserFolder(tmp_path / "two"))
    assert one.run("--workers", "1", *CHOSEN)[0] == 0

    process = two.start(str(two.table), "--preset", "demo", *two.places, "--workers", "2", *CHOSEN)
    until(
        lambda: [x for x in two.statuses() if x.get("epoch") and x["state"] == "running"] and children(process), process
    )
    os.kill(children(process)[-1], signal.SIGKILL)
    until(lambda: len(students(two)) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "a worker was lost (killed by SIGKILL)" in err and "Traceback" not in err, err

    code, _, err = two.run("--workers", "2", *CHOSEN)
    assert code == 0, err
    assert students(one) == students(two)


@pytest.mark.slow
def test_a_signal_to_all_processes_at_once_stops_workers_as_one_to_the_command_does(tmp_path: Path) -> None:
    """``timeout`` and schedulers send it to the group: workers get it from there, and again from their parent."""
    bench = longer(UserFolder(tmp_path))
    process = bench.start(
        str(bench.table), "--preset", "demo", *bench.places, "--workers", "2", *CHOSEN, start_new_session=True
    )
    until(lambda: [x for x in bench.statuses() if x["state"] == "running" and x.get("epoch")], process)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert {x["state"] for x in bench.statuses()} <= {"interrupted", "done"}


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    bench = longer(UserFolder(tmp_path / "a folder"))
    process = bench.start(str(bench.table), "--preset", "demo", *bench.places, "--workers", "2", *CHOSEN)
    until(lambda: bench.statuses() and children(process), process)
    working = children(process)
    process.kill()
    process.communicate()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in working):
        assert time.monotonic() < end, "they end by themselves"
        time.sleep(0.05)
