"""Tables and cells from Python: the same cells as the command line's, with a callback that can stop them."""

from __future__ import annotations

import json
import re
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import benchmarks
from benchmarks.store import manifest
from kd_methods.errors import UserError

REPO = Path(__file__).parents[2]
PAIR = "wrn_16_1-resnet8"
BLOCKS = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "python.md").read_text(), re.S)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all is written, short of what is named."""
    for name in ("DATA", "CHECKPOINTS", "OUTPUT"):
        monkeypatch.setenv(f"KDBENCH_{name}", str(tmp_path / name.lower()))
    return tmp_path


def test_a_table_is_planned_run_and_loaded(place: Path) -> None:
    asked: dict[str, Any] = {"preset": "demo", "methods": ["student", "kd"], "pairs": [PAIR], "seeds": [0], "epochs": 1}
    planned = benchmarks.plan_table("table2", **asked)
    assert list(planned["row"]) == ["student", "kd"] and set(planned["state"]) == {"missing"}
    heard: list[benchmarks.Event] = []
    cells = benchmarks.run_table("table2", progress=heard.append, **asked)
    assert list(cells["key"]) == list(planned["key"]) and set(cells["state"]) == {"done"}
    assert cells["last"].between(0, 100).all() and cells["last"].dtype == "Float64"
    trained = {event.cell.key for event in heard}
    assert len(trained) == 3 and set(cells["key"]) < trained, "the teacher's, too"
    assert [event.state for event in heard if event.cell.key == cells["key"][1]] == ["running", "done"]
    (table_folder,) = manifest.table_folders(place / "output")
    assert cells.equals(benchmarks.load(table=table_folder)) and benchmarks.plan_table("table2", **asked).equals(cells)
    epochs = benchmarks.load(table=table_folder, level="epoch")
    assert list(epochs["value"]) == list(cells["last"])
    heard.clear()
    assert benchmarks.run_table("table2", progress=heard.append, **asked).equals(cells) and not heard
    names = pd.read_csv(place / "output" / "tables" / table_folder / "table2-runs.csv")
    assert list(names["name"]) == [f"{table_folder}/{row}/{PAIR}/s0" for row in ("teacher", "student", "kd")]
    assert all((place / "output" / "runs" / folder / "metrics.json").is_file() for folder in names["folder"])


def test_a_callback_stops_a_cell_which_goes_on_later(place: Path) -> None:
    class Enough(Exception):
        pass

    def stop(event: benchmarks.Event) -> None:
        if event.cell.method == "kd" and event.epoch == 1:
            raise Enough

    call: dict[str, Any] = {"settings": {"temperature": 3.0}, "preset": "demo", "epochs": 2}
    with pytest.raises(Enough):
        benchmarks.run_cell("table2", "kd", PAIR, progress=stop, **call)
    states = {json.loads(file.read_text())["state"] for file in (place / "output" / "runs").glob("*/status.json")}
    assert states == {"done", "interrupted"}
    heard: list[benchmarks.Event] = []
    answers: list[dict[str, Any]] = []

    def again() -> None:
        answers.append(benchmarks.run_cell("table2", "kd", PAIR, progress=heard.append, **call))

    thread = threading.Thread(target=again)  # as Optuna and notebooks call it
    thread.start()
    thread.join()
    assert [(event.state, event.epoch) for event in heard] == [("running", 2), ("done", 0)]
    assert answers[0]["state"] == "done" and json.loads(answers[0]["settings"])["temperature"] == 3.0
    assert not manifest.table_folders(place / "output"), "a cell writes no table"


def test_mistakes_are_said(place: Path) -> None:
    with pytest.raises(TypeError, match="unknown argument 'sedes'"):
        benchmarks.run_table("table2", sedes=[0])  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unknown argument 'methods'"):
        benchmarks.run_cell("table2", "kd", PAIR, methods=["kd"])  # type: ignore[call-arg]
    with pytest.raises(UserError, match="unknown method"):
        benchmarks.plan_table("table2", preset="demo", methods=["kdd"])
    with pytest.raises(TypeError, match="unknown argument 'preset'"):
        benchmarks.workspace(preset="demo")  # type: ignore[call-arg]
    for seed in ("0", True, -1, 2**32, 0.5):
        with pytest.raises(UserError, match=r"seeds .*: give whole numbers from 0 to 4294967295"):
            benchmarks.plan_table("table2", preset="demo", seeds=[seed])  # type: ignore[list-item]
    for name, value in (("seeds", 0), ("methods", "kd"), ("pairs", PAIR)):
        with pytest.raises(UserError, match=f"{name} .*: give a list of them"):
            benchmarks.plan_table("table2", preset="demo", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="epochs '3': give whole numbers"):
        benchmarks.plan_table("table2", preset="demo", epochs="3")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown level 'epochs'; did you mean epoch"):
        benchmarks.load(place, level="epochs")  # type: ignore[arg-type]
    for name in ("workers", "threads"):
        with pytest.raises(UserError, match=f"{name} 0: give whole numbers from 1 on"):
            benchmarks.run_cell("table2", "kd", PAIR, preset="demo", **{name: 0})  # type: ignore[arg-type]


def test_what_numpy_counts_with_is_a_number(place: Path) -> None:
    here, there = (
        benchmarks.plan_table("table2", preset="demo", methods=["student"], pairs=[PAIR], seeds=seeds)
        for seeds in ([0], np.arange(1))
    )
    assert list(here["key"]) == list(there["key"])


def test_a_call_within_a_callback_is_an_error(place: Path) -> None:
    """It would wait for itself for ever."""
    call: dict[str, Any] = {"preset": "demo", "epochs": 1}

    def within(event: benchmarks.Event) -> None:
        benchmarks.run_cell("table2", "student", PAIR, seed=1, **call)

    with pytest.raises(UserError, match="within a callback"):
        benchmarks.run_cell("table2", "student", PAIR, progress=within, **call)


def test_places_may_be_texts(place: Path) -> None:
    """As those of ``load`` and ``output=`` are."""
    output = str(place / "output")
    benchmarks.run_table("table2", preset="demo", methods=["student"], pairs=[PAIR], seeds=[0], epochs=1)
    (folder,) = manifest.table_folders(place / "output")
    assert benchmarks.explain(output, folder, "student", PAIR).seeds[0].state == "done"
    file, other = str(place / "runs.zip"), str(place / "other")
    assert benchmarks.export(output, file, tables=[folder], also=["students"]).runs == 1
    assert not benchmarks.import_(file, other).missing
    assert benchmarks.merge(other, output).same == 1
    assert [one.holds for one in benchmarks.verify(file, benchmarks.workspace())] == [True]
    run = next((place / "output" / "runs").iterdir()).name
    assert benchmarks.convert(run=run, form="safetensors", folder=str(place / "out"), workspace=benchmarks.workspace())


def test_a_plugin_is_loaded_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kd_methods import registry

    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    file = place / "mine.py"
    file.write_text(
        "from dataclasses import replace\nimport kd_methods\nfrom kd_methods.logit.student import Student\n"
        "@kd_methods.register\nclass Mine(Student):\n    card = replace(Student.card, name='test_mine')\n"
    )
    first, second = benchmarks.workspace(plugins=[file]), benchmarks.workspace(plugins=[str(file)])
    assert first.plugins == second.plugins and list(first.plugins) == ["method:test_mine"]
    text = file.read_text()
    file.write_text(text + "# edited\n")
    with pytest.raises(UserError, match=r"mine\.py has changed since it was loaded here"):
        benchmarks.workspace(plugins=[file])
    (place / "other").mkdir()
    twin = place / "other" / "mine.py"
    twin.write_text(text)
    with pytest.raises(UserError, match="test_mine"):
        benchmarks.workspace(plugins=[twin])
    assert registry.get("test_mine") is registry.brought()["test_mine"]


def test_the_examples_of_the_page_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one epoch, and with a stand-in for Optuna that prunes its second trial."""
    monkeypatch.chdir(place)
    for name in ("run_table", "run_cell"):
        call = getattr(benchmarks, name)
        monkeypatch.setattr(benchmarks, name, lambda *a, call=call, **k: call(*a, epochs=1, **k), raising=False)
    exec(BLOCKS[0].replace("table2-demo", "table2-demo-epochs1"), {})
    study = _Study()
    optuna = types.SimpleNamespace(
        TrialPruned=_Pruned,
        create_study=lambda **_: study,
        pruners=types.SimpleNamespace(MedianPruner=lambda: None),
    )
    monkeypatch.setitem(__import__("sys").modules, "optuna", optuna)  # type: ignore[arg-type]
    exec(BLOCKS[1].replace("n_trials=20", "n_trials=2"), {})
    assert [trial.pruned for trial in study.trials] == [False, True]
    assert 0 < study.trials[0].value <= 100 and study.trials[0].reported == [(study.trials[0].value, 1)]


class _Pruned(Exception):
    pass


class _Trial:
    value, pruned = 0.0, False

    def __init__(self, number: int) -> None:
        self.number, self.reported = number, list[tuple[float, int]]()

    def suggest_float(self, name: str, low: float, high: float) -> float:
        return (low + high) / (2 + self.number)

    def report(self, value: float, step: int) -> None:
        self.reported.append((value, step))

    def should_prune(self) -> bool:
        return self.number == 1


class _Study:
    def __init__(self) -> None:
        self.trials: list[_Trial] = []

    def optimize(self, objective: Any, n_trials: int) -> None:
        for number in range(n_trials):
            self.trials.append(trial := _Trial(number))
            try:
                trial.value = objective(trial)
            except _Pruned:
                trial.pruned = True
