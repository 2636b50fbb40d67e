"""Cells of detection from a table to its numbers: kills, stops, several processes, failures, cost."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing.forkserver
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from helpers.detection import CPU, DENSE, STUDENT, TEACHER, TWO_STAGE, job_of, needs_mmdetection, train
from helpers.watchers import CellEvent, ForwardingWatcher, kind
from torch import Tensor

from benchmarks import networks
from benchmarks.common.events import Stepped
from benchmarks.common.files import write_json
from benchmarks.common.process.together import Answer, Lost
from benchmarks.common.seeding import seed_all
from benchmarks.common.weights import load_weights, to_bytes
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.config.published import pair_settings
from benchmarks.detection import engine
from benchmarks.driver.verify import protocol_of, verify
from benchmarks.store import exchange
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.store.make_cell import Distillation, make_cell
from benchmarks.store.runs import Store
from benchmarks.tasks import get_task
from benchmarks.training.failures import Interrupted
from kd_methods import registry
from kd_methods.errors import Changed, DiskError, UserError

needs_mmdetection()


@pytest.fixture(scope="module", autouse=True)
def _own_forkserver():
    """One that has mmdetection: other tests may have started one without."""
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]


def students(root: Path) -> dict[str, dict[str, Tensor]]:
    paths = {}
    for path in sorted((root / "runs").iterdir()):
        label = json.loads((path / "cell.json").read_text())["label"]
        if (path / "student.pt").is_file():
            paths[label] = load_weights(path / "student.pt")
    return paths


def same(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> bool:
    return a.keys() == b.keys() and all(
        a[label].keys() == b[label].keys() and all(torch.equal(a[label][k], b[label][k]) for k in a[label])
        for label in a
    )


def test_detectors_of_an_archive_measure_here_what_they_claim(run: Any, shapes: Path, tmp_path: Path) -> None:
    run("sent", methods=("student",))
    sent = tmp_path / "sent"
    exchange.export(sent, tmp_path / "sent.zip", tables=["tiny-paper"], also=["students"])
    here = Workspace(CPU, shapes, tmp_path / "checkpoints", tmp_path / "here", say=lambda line: None)
    verified = verify(tmp_path / "sent.zip", here)
    assert [(one.reason, one.difference) for one in verified] == [("", 0.0)]
    assert {"mAP", "AP50", "AP75"} <= set(verified[0].measured)
    weights = next(sent.glob("runs/*/student.pt"))
    broken = {name: torch.zeros_like(tensor) for name, tensor in load_weights(weights).items()}
    (tmp_path / "zeros.pt").write_bytes(to_bytes(broken))
    cell = Cell.of(json.loads((weights.parent / "cell.json").read_text())["cell"])
    assert engine.evaluator(here)(cell, protocol_of(cell), tmp_path / "zeros.pt").metrics["mAP"] < 0.05
    with pytest.raises(UserError, match=r"student\.pt"):
        engine.evaluator(here)(dataclasses.replace(cell, student=TEACHER), protocol_of(cell), weights)


def test_a_matrix_to_its_table(run: Any, tmp_path: Path):
    said = run("whole")
    folder = tmp_path / "whole" / "tables" / "tiny-paper"
    text, page = (folder / "tiny.tex").read_text(), (folder / "tiny.md").read_text()
    assert r"\begin{tabular}" in text and "AP50" in text and "starts from its teacher's neck and heads" in page
    assert any("rkd" in line and "n/a" in line for line in said) or "n/a" in text
    whole = students(tmp_path / "whole")
    assert len(whole) == 4  # the teacher among them
    for path in (tmp_path / "whole" / "runs").glob("*/metrics.json"):
        for record in json.loads(path.read_text()):
            assert set(record["metrics"]) >= {"mAP", "AP50", "AP75"} and record["losses"]["task"] > 0
    # mmengine's own record of the run lies beside.
    assert list((tmp_path / "whole" / "runs").glob("*/mmengine/*/vis_data/*.json"))


@pytest.mark.slow  # by default a cell is stopped, and goes on
def test_killed_and_run_again_to_the_same_bits(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    run("whole", methods=("block_kd.fpn",))
    whole, hear, killed = students(tmp_path / "whole"), engine._in_processes, set[str]()
    capfd.readouterr()

    def killing(what: str, jobs: Any, heard: Any = print, stopping: Any = lambda: False) -> Any:
        """The first process of a cell is killed in its second epoch."""

        def listen(event: Any) -> None:
            heard(event)
            if isinstance(event, Stepped) and event.position == (2, 1) and jobs[0].cell.key not in killed:
                killed.add(jobs[0].cell.key)
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGKILL)

        return hear(what, jobs, listen, stopping)

    monkeypatch.setattr(engine, "_in_processes", killing)
    run("killed", methods=("block_kd.fpn",))
    assert len(killed) == 2 == capfd.readouterr().err.count("a process was lost (killed by SIGKILL); ")
    logs = [path.read_text() for path in (tmp_path / "killed" / "runs").glob("*/mmengine/console.log")]
    assert sum("resumed epoch: 0, iter: 3" in log for log in logs) == 2
    again = students(tmp_path / "killed")
    assert len(again) == 2 and same(again, whole)


def test_a_cell_stops_on_request_and_goes_on(
    shapes: Path, tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]
):
    job = job_of(tmp_path, shapes)
    cell, runs = job.cell, {}
    for name in ("whole", "stopped"):
        store, steps, events = Store(tmp_path / name), [0], []

        def report(event: CellEvent, steps: list[int] = steps, events: list[str] = events) -> None:
            steps[0] += kind(event) == "step"
            events.append(kind(event))

        def stopping(name: str = name, steps: list[int] = steps) -> bool:
            return name == "stopped" and 1 <= steps[0] < 4

        if name == "stopped":
            with pytest.raises(Interrupted):
                train(job, store.root, stopping, report)
            assert store.run(cell).state == "interrupted"
            steps[0] = 4
            # As if other threads had computed the beginning.
            environments: list[Any] = store.run(cell).environments
            environments[-1]["arithmetic"]["threads"] += 1
            write_json(store.run(cell) / "environment.json", environments)
        train(job, store.root, stopping, report)
        assert store.run(cell).state == "done" and events[-1] == "done"
        runs[name] = load_weights(store.run(cell) / "student.pt")
    assert all(torch.equal(runs["whole"][key], value) for key, value in runs["stopped"].items())
    (change,) = store.run(cell).status["remarks"]
    assert re.fullmatch(r"computed with threads \d+ instead of \d+ from epoch 1 on", change)
    assert f"{cell.label}  {change}, so it ends in other bits" in capsys.readouterr().out
    assert "resumed epoch" in (store.run(cell) / "mmengine" / "console.log").read_text()
    # What is saved is the plain detector: it loads into mmdet's own, and nothing of a method is with it.
    networks.build_network(STUDENT, 3).module.load_state_dict(runs["whole"], strict=True)


def test_a_stop_before_the_first_step_is_no_failure(shapes: Path, tmp_path: Path, table: str):
    job = job_of(tmp_path, shapes)
    with pytest.raises(Interrupted):
        train(job, tmp_path / "out", stopping=lambda: True)
    assert Store(tmp_path / "out").run(job.cell).state not in ("failed", "done")


@pytest.mark.slow
def test_two_processes_share_each_batch_and_average_their_gradients(shapes: Path, tmp_path: Path, table: str):
    from benchmarks.detection.training import runner as detection

    of_detection = job_of(tmp_path, shapes, processes=2).detection
    one = of_detection.model_copy(update={"iterations": 1, "workers": 0, "warmup": 0})
    job = job_of(tmp_path, shapes, {"detection": one, "epochs": 1, "milestones": ()})
    protocol = job.protocol
    store = train(job, tmp_path / "out")
    status = store.run(job.cell).status
    assert status["state"] == "done", status
    trained = load_weights(store.run(job.cell) / "student.pt")

    alone, places = [], []
    for rank in range(2):
        folder = tmp_path / f"rank{rank}"
        folder.mkdir()
        runner, hook = detection.set_up(dataclasses.replace(job, rank=rank), None, folder)
        model: Any = runner.model.train()
        data = next(iter(runner.train_dataloader))
        places += [sample.img_id for sample in data["data_samples"]]
        hook.before_train_iter(runner, 0)
        prepared = model.data_preprocessor(data, True)
        losses = model(**prepared, mode="loss")
        model.parse_losses(losses)[0].backward()
        alone.append(dict(model.student.named_parameters()))
    assert len(set(places)) == len(places) == protocol.batch_size
    norm = torch.stack(
        [((a.grad + b.grad) / 2).norm() for a, b in zip(*(p.values() for p in alone), strict=True)]
    ).norm()
    clip = min(1.0, protocol.optimizer.clip / (float(norm) + 1e-6))
    for name, first in alone[0].items():
        slope = clip * (first.grad + alone[1][name].grad) / 2 + protocol.optimizer.weight_decay * first
        expected = first - protocol.optimizer.lr * slope
        torch.testing.assert_close(trained[name], expected.detach(), atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_two_processes_go_on_after_one_of_them_is_killed(
    shapes: Path, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # where mmengine would leave what processes collect
    job = job_of(tmp_path, shapes, processes=2, precision="bf16")
    whole, run_processes, seen = train(job, tmp_path / "whole"), engine._in_processes, list[Any]()

    def killing(what: str, jobs: Any, hear: Any, stopping: Any) -> Any:
        def listen(event: Any) -> None:
            hear(event)
            if isinstance(event, Stepped) and event.position[0] == 2 and not seen:
                seen.extend(multiprocessing.active_children())
                os.kill(max(child.pid for child in seen), signal.SIGKILL)

        return run_processes(what, jobs, listen, stopping)

    monkeypatch.setattr(engine, "_in_processes", killing)
    killed = train(job, tmp_path / "killed")
    assert len(seen) == 2 and not any(child.is_alive() for child in seen)
    log = (killed.run(job.cell) / "mmengine" / "console.log").read_text()
    assert "resumed epoch: 0, iter: 3" in log
    ends = [load_weights(store.run(job.cell) / "student.pt") for store in (whole, killed)]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])
    assert whole.run(job.cell).metrics[-1]["losses"] == killed.run(job.cell).metrics[-1]["losses"]
    assert not Path(".dist_test").exists()


def test_a_cell_whose_processes_are_lost_again_and_again_has_failed(
    shapes: Path, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
):
    job, tries = job_of(tmp_path, shapes), list[int]()

    def lost(what: str, jobs: Any, hear: Any, stopping: Any) -> Lost:
        tries.append(len(jobs))
        return Lost("process 0", "killed by SIGKILL", failed=False, stopped=False)

    monkeypatch.setattr(engine, "_in_processes", lost)
    status = train(job, tmp_path / "out").run(job.cell).status
    assert status["state"] == "failed" and status["message"] == "its processes were lost 3 times: killed by SIGKILL"
    assert tries == [1, 1, 1]


def test_the_optimizer_is_the_protocols(shapes: Path, tmp_path: Path, table: str):
    from benchmarks.detection.training import runner as detection

    job = job_of(tmp_path, shapes)
    job.path.mkdir()
    runner, _ = detection.set_up(job, None, job.path)
    (group,) = runner.build_optim_wrapper(runner.optim_wrapper).optimizer.param_groups
    recipe = job.protocol.optimizer
    assert {name: group[name] for name in ("momentum", "weight_decay", "nesterov", "lr")} == {
        "momentum": 0.9, "weight_decay": recipe.weight_decay, "nesterov": False, "lr": recipe.lr,
    }  # fmt: skip


def test_a_file_that_cannot_be_read_is_no_refusal(shapes: Path, tmp_path: Path, table: str):
    """A cell that is refused is not tried again; one whose teacher's file was damaged is."""
    (tmp_path / "teacher.pt").write_bytes(b"nothing")
    job = job_of(tmp_path, shapes)
    taught = Distillation("kd", TeacherRef(TEACHER, (), (), weights="none"))
    cell = make_cell(job.protocol, job.cell.data, STUDENT, taught)
    job = dataclasses.replace(job, cell=cell, teacher=tmp_path / "teacher.pt")
    status = train(job, tmp_path / "out").run(cell).status
    assert status["state"] == "failed" and "teacher.pt" in status["message"] and "trace" not in status


def test_data_that_change_while_a_run_goes_on_are_refused(shapes: Path, tmp_path: Path, table: str):
    """Each process reads the files again; what it would compute has the key of the data as they were."""
    job = job_of(tmp_path, shapes)
    cell = dataclasses.replace(job.cell, data="as they were")
    with pytest.raises(Changed, match="have changed since the run was planned"):
        train(dataclasses.replace(job, cell=cell), tmp_path / "out")
    assert Store(tmp_path / "out").run(cell).state not in ("failed", "done"), "it is in no store's way"


def test_an_image_that_cannot_be_decoded_is_one_line(shapes: Path, tmp_path: Path, table: str):
    """It is met in a process that loads images, whose errors torch hands on with their tracebacks."""
    shutil.copytree(shapes / "kd-shapes", tmp_path / "kd-shapes")
    path = tmp_path / "kd-shapes" / "val2017" / "0003.png"
    path.write_bytes(path.read_bytes()[:20])
    job = job_of(tmp_path, tmp_path)
    with pytest.raises(DiskError, match=rf"^{path} is no readable image \(AssertionError\); replace it$"):
        train(job, tmp_path / "out")
    assert Store(tmp_path / "out").run(job.cell).state == "running", "its data concern every cell, and it goes on"


def test_a_method_that_exits_fails_its_cell_and_a_full_disk_ends_the_run(
    shapes: Path, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
):
    plugin = tmp_path / "exits.py"
    plugin.write_text(
        "import sys\nfrom dataclasses import replace\nimport kd_methods\n"
        "from kd_methods.logit.student import Student\n"
        "@kd_methods.register\nclass Exits(Student):\n"
        "    card = replace(Student.card, name='test_exits')\n"
        "    def losses(self, *_):\n        sys.exit(0)\n"
    )
    job = job_of(tmp_path, shapes)
    with monkeypatch.context() as patch:
        patch.setitem(registry._classes, "test_exits", registry.get("student"))
        cell = make_cell(job.protocol, job.cell.data, STUDENT, Distillation("test_exits"))
    store = Store(tmp_path / "out")
    place = Workspace(CPU, job.data_root, output=store.root, plugin_files=(plugin,))
    context = engine.Context(place, job.protocol, None, lambda ref: None, ForwardingWatcher())
    engine.run([cell], context)
    assert store.run(cell).status["state"] == "failed" and store.run(cell).status["message"] == "SystemExit: 0"
    monkeypatch.setattr(engine, "_in_processes", lambda *_: Answer(DiskError("nothing can be written")))
    with pytest.raises(DiskError, match="nothing can be written"):
        engine.run([cell], context)


def test_a_diverging_cell_says_which_term(shapes: Path, tmp_path: Path, table: str):
    optimizer = job_of(tmp_path, shapes).protocol.optimizer.model_copy(update={"lr": 1e30, "clip": 0.0})
    job = job_of(tmp_path, shapes, {"optimizer": optimizer})
    status = train(job, tmp_path / "out").run(job.cell).status
    assert status["state"] == "diverged" and status["message"].startswith("loss term 'task' is ")


def test_the_cost_of_a_step(shapes: Path, tmp_path: Path, table: str):
    job = job_of(tmp_path, shapes)
    figures = engine.cost(job.cell, job.protocol, Workspace(CPU, shapes))
    assert figures.images_per_second > 0 and figures.extra_train_params == 0
    assert figures.peak_memory_bytes > 10**7


KEY, MODEL = "k" * 64, torch.nn.Linear(100, 1)


def checkpoint(path: Path, value: float = 0.0, **changes: Any) -> Path:
    """A Runner's, as far as it is looked at, whose weights are ``value``."""
    weights = {name: torch.full_like(tensor, value) for name, tensor in MODEL.state_dict().items()}
    entries = dict.fromkeys(("optimizer", "param_schedulers", "message_hub", "meta"), 0)
    torch.save({"state_dict": weights, **entries, "kd": {"cell": KEY}} | changes, path)
    return path


def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a kill cut off, or a flipped bit changed, is set aside; older ones go; what cannot be read now stays."""
    from benchmarks.detection.training.checkpoints import last_checkpoint

    for number in (10, 20, 30, 100):
        checkpoint(tmp_path / f"iter_{number}.pth", number)
    changed, cut = tmp_path / "iter_30.pth", tmp_path / "iter_100.pth"
    content = changed.read_bytes()
    place = content.index(torch.full((100,), 30.0).numpy().tobytes())
    changed.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    cut.write_bytes(cut.read_bytes()[:-100])
    before = cut.read_bytes()

    def fail(error: BaseException) -> NoReturn:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", lambda _: fail(PermissionError(13, "Permission denied")))
        with pytest.raises(DiskError, match=r"cannot read .*iter_100.pth: Permission denied"):
            last_checkpoint(tmp_path, KEY, MODEL)
    with monkeypatch.context() as patched:
        patched.setattr("benchmarks.detection.training.checkpoints.check_archive", lambda *_: None)
        patched.setattr(torch, "load", lambda *_, **__: fail(MemoryError()))
        with pytest.raises(MemoryError):
            last_checkpoint(tmp_path, KEY, MODEL)
    assert len(list(tmp_path.iterdir())) == 4

    assert last_checkpoint(tmp_path, KEY, MODEL) == tmp_path / "iter_20.pth"
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"iter_20.pth", "iter_30.pth.unreadable-1", "iter_100.pth.unreadable-1"}
    assert (tmp_path / "iter_100.pth.unreadable-1").read_bytes() == before
    assert last_checkpoint(tmp_path, KEY, MODEL) == tmp_path / "iter_20.pth"


@pytest.mark.parametrize(
    "changes",
    [
        {"kd": {"cell": "l" * 64}},
        {"state_dict": {"weight": torch.zeros(1, 100)}},
        {"state_dict": {**MODEL.state_dict(), "more": torch.zeros(1)}},
        {"state_dict": {**MODEL.state_dict(), "bias": torch.zeros(2)}},
    ],
    ids=["another cell's", "fewer weights", "more weights", "another shape"],
)
def test_a_checkpoint_of_something_else_is_set_aside(tmp_path: Path, changes: dict[str, Any]):
    """The Runner itself would go on with those of the weights that fit."""
    from benchmarks.detection.training.checkpoints import last_checkpoint

    checkpoint(tmp_path / "iter_20.pth", **changes)
    whole = checkpoint(tmp_path / "iter_10.pth")
    assert last_checkpoint(tmp_path, KEY, MODEL) == whole and (tmp_path / "iter_20.pth.unreadable-1").is_file()
    torch.save({"state_dict": MODEL.state_dict()}, whole)
    assert last_checkpoint(tmp_path, KEY, MODEL) is None


def test_a_checkpoint_that_another_process_of_the_cell_sets_aside_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from benchmarks.detection.training import checkpoints

    whole, gone = checkpoint(tmp_path / "iter_10.pth"), checkpoint(tmp_path / "iter_20.pth")
    read = checkpoints.read_bytes

    def late(path: Path) -> bytes:
        gone.unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(checkpoints, "read_bytes", late)
    assert checkpoints.last_checkpoint(tmp_path, KEY, MODEL) == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TWO_STAGE, "student", *DENSE])
def test_the_loss_falls_over_fifty_iterations(name: str, shapes: Path, tmp_path: Path):
    """Compared are the means of the first and the last ten steps."""
    from benchmarks.detection.training import runner as detection
    from benchmarks.detection.training.job import DetectionJob

    protocol = load_protocol("shapes-demo")
    values = dict(pair_settings(name, "", protocol.recipe))

    teacher, student = ("gfl_small_r18x2", "gfl_small_r18x4") if name in DENSE else (TEACHER, STUDENT)
    ref = TeacherRef(teacher, (), (), weights="none")
    data = get_task("shapes").fingerprint(shapes, protocol)
    cell = make_cell(protocol, data, student, Distillation(name, ref, values))
    job = DetectionJob(cell, protocol, shapes, "cpu", torch.get_num_threads(), (), tmp_path)
    runner, _ = detection.set_up(job, lambda message: None, tmp_path)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    batches = iter(runner.train_dataloader)
    history: list[dict[str, float]] = []
    runner.model.train()
    for step in range(50):
        seed_all(step)
        losses = runner.model.train_step(next(batches), optim_wrapper=runner.optim_wrapper)
        history.append({key: float(value) for key, value in losses.items()})
    # GFL weighs boxes by class scores, which begin near zero: its own loss rises at first.
    start = 10 if name == "ld" else 0
    first, last = (
        sum(record["loss"] for record in records) / 10 for records in (history[start : start + 10], history[-10:])
    )
    assert last < first, (first, last)
