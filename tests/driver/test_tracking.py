"""Trackers follow cells, and never stop one."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.watchers import ForwardingWatcher

from benchmarks.cli import options
from benchmarks.common import plugins
from benchmarks.common.events import CellEnded, EpochEnded, EpochRecord, Event, Said, Stepped, Watcher
from benchmarks.config.protocol import load_protocol
from benchmarks.driver.trackers import TRACKERS, Tracker, scalars, settings, tensorboard
from benchmarks.driver.trackers.tensorboard import TensorBoard
from benchmarks.driver.tracking import Tracking
from benchmarks.store.cell import Cell
from benchmarks.store.runs import Store
from kd_methods.errors import UserError

PAGE = (Path(__file__).parents[2] / "docs" / "trackers.md").read_text(encoding="utf-8")
PLUGINS = dict(re.findall(r"```python\n# (\w+)_tracker\.py\n(.*?)```", PAGE, re.S))
"""The page's own trackers by the library that they write to."""
PROTOCOL = load_protocol("digits-demo")
CELL = Cell("digits", "data", PROTOCOL.identity(), 0.1, "resnet8", "kd", 1, {"temperature": 4.0, "layers": [1, 2]}, 0)


def record(epoch: int) -> EpochRecord:
    losses, metrics = {"task": 1.0 / (epoch + 9), "kd": 0.5}, {} if epoch < 1 else {"top1": 50.0 + epoch}
    return {"epoch": epoch, "phase": "", "lr": 0.1, "metrics": metrics, "probes": {}, "losses": losses, "seconds": 2}


def step(cell: Cell = CELL) -> Stepped:
    return Stepped(cell.key, cell.label, (1, 1))


def epoch_ended(number: int, cell: Cell = CELL) -> EpochEnded:
    return EpochEnded(cell.key, cell.label, record(number))


def done(cell: Cell = CELL) -> CellEnded:
    return CellEnded(cell.key, cell.label, "done")


def tracking(
    folder: Path, *kinds: type[Tracker], watcher: Watcher = lambda event: None, cells: Sequence[Cell] = (CELL,)
) -> Tracking:
    return Tracking(watcher, kinds, cells, Store(folder))


def made(calls: list[Any], fails_in: str = "", error: BaseException | None = None) -> type[Tracker]:
    """A tracker that notes its calls, and fails in one of them."""

    class Noting(Tracker):
        name = f"noting{fails_in}"

        def __init__(self, cell: Cell, folder: Path) -> None:
            self._note("begin", cell.label, folder.name)

        def epoch(self, record: Mapping[str, Any]) -> None:
            self._note("epoch", record["epoch"])

        def end(self, state: str) -> None:
            self._note("end", state)

        def _note(self, *call: Any) -> None:
            if call[0] == fails_in:
                raise error or RuntimeError("gone")
            calls.append(call)

    return Noting


def test_a_tracker_is_told_of_each_cell_from_its_first_step_to_its_end(tmp_path: Path) -> None:
    calls: list[Any] = []
    passed: list[Event] = []
    events = [Said("a line"), step(), step(), epoch_ended(0), epoch_ended(1), done()]
    with tracking(tmp_path, made(calls), watcher=passed.append) as watcher:
        for event in events:
            watcher(event)
    assert passed == events
    assert calls == [("begin", CELL.label, "noting"), ("epoch", 0), ("epoch", 1), ("end", "done")]


def test_what_is_stopped_is_ended_as_its_run_says(tmp_path: Path) -> None:
    calls: list[Any] = []
    Store(tmp_path).run(CELL).set_status("interrupted")
    with pytest.raises(KeyboardInterrupt), tracking(tmp_path, made(calls)) as watcher:
        watcher(step())
        raise KeyboardInterrupt
    assert calls[-1] == ("end", "interrupted")


@pytest.mark.parametrize("call", ["begin", "epoch", "end"])
@pytest.mark.parametrize("error", [RuntimeError("gone"), SystemExit(1)])
def test_a_tracker_that_fails_is_said_once_and_stops_nothing(tmp_path: Path, call: str, error: BaseException) -> None:
    calls: list[Any] = []
    lines: list[str] = []
    kinds, cells = (made([], call, error), made(calls)), [replace(CELL, seed=seed) for seed in range(2)]
    with tracking(tmp_path, *kinds, watcher=ForwardingWatcher(say=lines.append), cells=cells) as watcher:
        for cell in cells:
            for event in (step(cell), epoch_ended(1, cell), done(cell)):
                watcher(event)
    assert lines == [f"tracker noting{call} fails ({type(error).__name__}: {error}); training goes on without it"]
    assert [name for name, *_ in calls] == ["begin", "epoch", "end"] * 2


@pytest.mark.parametrize("call", ["begin", "epoch", "end"])
def test_a_tracker_that_hangs_is_said_once_and_stops_nothing(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    lines: list[str] = []
    gate, usual = threading.Event(), Tracking._call

    class Hanging(made([])):  # type: ignore[misc]
        name = "hanging"

        def _note(self, *now: Any) -> None:
            if now[0] == call:
                gate.wait()

    def impatient(self: Tracking, kind: type[Tracker], *rest: Any) -> Any:
        """With this one alone: the other has all its time, however busy the machine is."""
        with monkeypatch.context() as patch:
            if kind is Hanging:
                patch.setattr("benchmarks.driver.tracking.PATIENCE", 0.2)
            return usual(self, kind, *rest)

    monkeypatch.setattr(Tracking, "_call", impatient)
    cells, said = [replace(CELL, seed=seed) for seed in range(2)], ForwardingWatcher(say=lines.append)
    with tracking(tmp_path, Hanging, made(calls), watcher=said, cells=cells) as watcher:
        for cell in cells:
            for event in (step(cell), epoch_ended(1, cell), done(cell)):
                watcher(event)
    gate.set()
    assert lines == ["tracker hanging is not back after 120 s; training goes on without it"]
    assert [name for name, *_ in calls] == ["begin", "epoch", "end"] * 2


def test_a_tracker_is_called_in_one_thread_and_an_essential_one_in_ours(tmp_path: Path) -> None:
    threads = dict[str, set[int]]()
    for essential in (False, True):
        with tracking(tmp_path, made_in(threads, essential)) as watcher:
            for event in (step(), epoch_ended(1), done()):
                watcher(event)
    assert len(threads["aside"]) == 1 and threads["aside"] != threads["here"] == {threading.get_ident()}


def made_in(threads: dict[str, set[int]], is_essential: bool) -> type[Tracker]:
    """A tracker that notes its threads."""

    class Noting(made([])):  # type: ignore[misc]
        name, essential = ("here", True) if is_essential else ("aside", False)

        def _note(self, *now: Any) -> None:
            threads.setdefault(self.name, set()).add(threading.get_ident())

    return Noting


def test_a_tracker_s_settings_of_the_process_are_its_own(tmp_path: Path) -> None:
    """Cells may be trained in the same process."""

    class Changing(made([])):  # type: ignore[misc]
        def epoch(self, record: Mapping[str, Any]) -> None:
            torch.set_num_threads(2)
            torch.set_default_dtype(torch.float64)

    with tracking(tmp_path, Changing) as watcher:
        watcher(epoch_ended(1))
    assert torch.get_num_threads() == 1 and torch.get_default_dtype() == torch.float32


def test_names_of_numbers_and_settings() -> None:
    assert scalars(record(1)) == {
        "lr": 0.1, "metrics/top1": 51.0, "losses/task": 0.1, "losses/kd": 0.5, "seconds": 2,
    }  # fmt: skip
    logged = settings(CELL)
    assert (logged["method/name"], logged["method/settings/temperature"], logged["seed"]) == ("kd", 4.0, 0)
    assert logged["method/settings/layers"] == "[1, 2]" and "teacher" not in logged


def test_what_cannot_be_used_is_said_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install '.\[track\]'"):
        options.tracker_classes(["tensorboard"])
    with pytest.raises(UserError, match="did you mean tensorboard"):
        options.tracker_classes(["tensorbord"])


def test_what_tensorboard_wrote_is_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra [track] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    lines: list[str] = []
    with tracking(tmp_path, TensorBoard, watcher=ForwardingWatcher(say=lines.append)) as watcher:
        for event in (step(), epoch_ended(0), epoch_ended(1), epoch_ended(2), done()):
            watcher(event)
    assert not lines
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name == f"kd_resnet8_s0_{CELL.key[:8]}"
    read = EventAccumulator(str(folder)).Reload()
    for name in scalars(record(2)):
        values = [(event.step, event.value) for event in read.Scalars(name)]
        expected = [(epoch, scalars(record(epoch))[name]) for epoch in range(3) if name in scalars(record(epoch))]
        assert values == [(epoch, pytest.approx(value)) for epoch, value in expected], name
    (text,) = read.Tensors("settings/text_summary")
    assert "| method/settings/temperature | 4.0 |" in text.tensor_proto.string_val[0].decode()
    begun = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(begun).session_start_info.hparams
    assert start["method/settings/temperature"].number_value == 4.0 and start["state"].string_value == "done"
    assert json.loads(start["method/settings/layers"].string_value) == [1, 2]
    assert [event.value for event in read.Scalars("last/top1")] == [52.0]


def follow(library: str, stand_in: SimpleNamespace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """A cell that is done and one that fails, tracked by the page's plugin with a stand-in for the library."""
    monkeypatch.setitem(sys.modules, library, stand_in)  # type: ignore[arg-type]
    monkeypatch.setattr(TRACKERS, "_registered", {})
    (folder / f"{library}_tracker.py").write_text(PLUGINS[library])
    assert plugins.load([folder / f"{library}_tracker.py"]).keys() == {f"tracker:{library}"}
    cells, lines = [replace(CELL, seed=seed) for seed in range(2)], list[str]()
    kinds, watcher = options.tracker_classes([library]), ForwardingWatcher(say=lines.append)
    with tracking(folder, *kinds, watcher=watcher, cells=cells) as watch:
        for cell, state in zip(cells, ("done", "failed"), strict=True):
            for event in (step(cell), epoch_ended(0, cell), epoch_ended(1, cell)):
                watch(event)
            watch(CellEnded(cell.key, cell.label, state))
    assert not lines
    return cells


SETTINGS = ("student", "method/name", "method/settings/temperature", "seed")
NUMBERS = [
    {"lr": 0.1, "losses/task": 1 / 9, "losses/kd": 0.5, "seconds": 2},
    {"lr": 0.1, "losses/task": 0.1, "losses/kd": 0.5, "seconds": 2, "metrics/top1": 51.0},
]
"""Some of a cell's settings, and the numbers of both epochs."""


def test_the_page_s_plugin_for_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[SimpleNamespace] = []

    def init(*, project: str, name: str, id: str, config: dict[str, Any], dir: Path, resume: str, reinit: str) -> Any:
        assert (resume, reinit, dir.is_dir()) == ("allow", "create_new", True)
        run, logged, codes = SimpleNamespace(name=name, id=id, config=config), list[Any](), list[int]()
        run.logged, run.log, run.codes = logged, lambda data: logged.append(data), codes
        run.finish = lambda *, exit_code: codes.append(exit_code)
        runs.append(run)
        return run

    cells = follow("wandb", SimpleNamespace(init=init), tmp_path, monkeypatch)
    assert [(run.name, run.codes) for run in runs] == [(cells[0].label, [0]), (cells[1].label, [1])]
    assert len({run.id for run in runs}) == 2
    for seed, run in enumerate(runs):
        assert [run.config[name] for name in SETTINGS] == ["resnet8", "kd", 4.0, seed]
        assert run.logged == [{**numbers, "epoch": epoch} for epoch, numbers in enumerate(NUMBERS)]


def test_the_page_s_plugin_for_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[SimpleNamespace] = []

    class MlflowClient:
        def create_run(self, experiment_id: str, *, run_name: str, tags: dict[str, str]) -> Any:
            run = SimpleNamespace(name=run_name, tags=tags, parameters={}, metrics=[{}, {}], ends=[])
            runs.append(run)
            return SimpleNamespace(info=SimpleNamespace(run_id=f"run {len(runs) - 1}"))

        def log_param(self, run_id: str, key: str, value: Any) -> None:
            self._run(run_id, key).parameters[key] = value

        def log_metric(self, run_id: str, key: str, value: float, *, step: int) -> None:
            self._run(run_id, key).metrics[step][key] = value

        def set_terminated(self, run_id: str, status: str) -> None:
            self._run(run_id).ends.append(status)

        def _run(self, run_id: str, key: str = "name") -> SimpleNamespace:
            assert re.fullmatch(r"[\w./ :-]+", key), "a name that MLflow refuses"
            return runs[int(run_id.removeprefix("run "))]

    cells = follow("mlflow", SimpleNamespace(MlflowClient=MlflowClient), tmp_path, monkeypatch)
    assert [(run.name, run.tags) for run in runs] == [(cell.label, {"cell": cell.key}) for cell in cells]
    assert [run.ends for run in runs] == [["FINISHED"], ["FAILED"]]
    for seed, run in enumerate(runs):
        assert [run.parameters[name] for name in SETTINGS] == ["resnet8", "kd", 4.0, seed]
        assert run.metrics == NUMBERS
