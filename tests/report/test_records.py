"""A store as data: typed columns, one value in each, from Python and as files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
from helpers import stores
from helpers.manifests import FACTS, PAIR, finish, paper

import benchmarks
from benchmarks.common.files import write_json
from benchmarks.report import records
from benchmarks.report.model import CostEntry
from benchmarks.store import manifest
from benchmarks.store.manifest.shapes import PlannedCost
from benchmarks.store.runs import Store
from kd_methods.errors import UserError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    shown = paper(deviations=["5 epochs instead of 240", "a, b"])
    manifest.save(tmp_path, "table1-paper", shown)
    finish(tmp_path, shown, {"student": (69.0, 69.3)})
    cell = next(cell for cell in shown.cells if cell.row == "kd")
    run = Store(tmp_path).run(cell.key)
    write_json(run / "environment.json", [FACTS])
    epochs = [{"epoch": 1, "metrics": {"top1": 60.0}, "losses": {"task": 1.5}, "lr": 0.05, "seconds": 2.0},
              {"epoch": 2, "metrics": {"top1": 70.5}, "losses": {"kd": 0.5}, "watched": {"g_T": 3.1}}]  # fmt: skip
    run.set_metrics(epochs)
    run.set_status("done", epoch=2, epochs=2, last={"top1": 70.5}, best={"top1": 71.0})
    return tmp_path


def test_a_line_for_each_cell_with_typed_columns(store: Path) -> None:
    frame = benchmarks.load(store)
    assert len(frame) == 6 and frame["seed"].dtype == "Int64" and frame["last"].dtype == "Float64"
    assert frame["taught"].dtype == "boolean" and list(frame["row"].unique()) == ["student", "kd", "dkd"]
    kd = frame[(frame.row == "kd") & (frame.seed == 0)].iloc[0]
    assert (kd["last"], kd["best"], kd["state"], kd["metric"], kd["pair"]) == (70.5, 71.0, "done", "top1", PAIR)
    assert (kd["table"], kd["protocol"], kd["torch"]) == ("table1-paper", "cifar100-crd240", "2.9")
    assert json.loads(kd["deviations"]) == ["5 epochs instead of 240", "a, b"] and json.loads(kd["settings"]) == {}
    missing = frame[frame.row == "dkd"].iloc[0]
    assert missing["state"] == "missing" and pd.isna(missing["last"])


def test_what_a_teacher_measures_stands_there_wherever_it_was_trained(tmp_path: Path) -> None:
    stores.finish(tmp_path, stores.TEACHER, 91.0)
    stores.finish(tmp_path, stores.cell("kd", 0), 70.0)
    manifest.save(tmp_path, "mine-paper", stores.shown(stores.cell("kd", 0)))
    (line,) = benchmarks.load(tmp_path).to_dict("records")
    assert line["teacher_accuracy"] == 91.0


def test_a_line_for_each_epoch(store: Path) -> None:
    frame = benchmarks.load(store, "table1-paper", level="epoch")
    assert list(frame["value"]) == [60.0, 70.5] and list(frame["epoch"]) == [1, 2]
    assert list(frame["watched.g_T"].dropna()) == [3.1] and frame["watched.g_T"].dtype == "Float64"
    assert frame["loss.task"].dtype == "Float64" and pd.isna(frame["loss.task"][1]) and frame["loss.kd"][1] == 0.5
    assert list(frame["metric.top1"]) == [60.0, 70.5] and set(frame["row"]) == {"kd"}


def test_a_line_for_each_cost_and_each_verdict(store: Path) -> None:
    shown = manifest.existing(store, "table1-paper")
    cost = {"row": "kd", "column": PAIR, "key": "c" * 64}
    manifest.save(store, "table1-paper", shown.model_copy(update={"costs": (PlannedCost.model_validate(cost),)}))
    figures = CostEntry(100.0, 2**20, "CUDA allocated", 0, 0, 64, "cuda", 3, memory_split={"weights": 5})
    write_json(Store(store).cost("c" * 64), {"label": "kd", "cost": asdict(figures), "environment": FACTS})
    (line,) = benchmarks.load(store, level="cost").to_dict("records")
    assert (line["row"], line["pair"], line["images_per_second"], line["peak_memory_bytes"]) == (
        "kd",
        PAIR,
        100.0,
        2**20,
    )
    assert line["memory_split.weights"] == 5 and line["machine"] == FACTS["machine"]
    judged = benchmarks.load(store, "table1-paper", level="verdict")
    assert judged["gap"].dtype == "Float64" and judged["n"].dtype == "Int64"
    assert list(judged["verdict"]) == list(benchmarks.verdicts(store)["verdict"])


def test_files_say_the_same_as_the_frame(store: Path) -> None:
    frame = benchmarks.load(store)
    for form, read in (("csv", pd.read_csv), ("json", pd.read_json)):
        file = store / f"data.{form}"
        assert records.write(file, form, store) == 6  # type: ignore[arg-type]
        again = read(file)
        assert list(again.columns) == list(frame.columns)
        assert again["last"].dropna().tolist() == frame["last"].dropna().tolist()
        assert again["taught"].tolist() == frame["taught"].tolist()


def test_parquet_where_pyarrow_is_there_and_else_one_line(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise ImportError("no pyarrow")

    with monkeypatch.context() as patched:
        patched.setattr(pd.DataFrame, "to_parquet", absent)
        with pytest.raises(UserError, match="needs pyarrow"):
            records.write(store / "data.parquet", "parquet", store)
    assert not (store / "data.parquet").exists()
    pytest.importorskip("pyarrow")
    records.write(store / "data.parquet", "parquet", store, "table1-paper")
    assert pd.read_parquet(store / "data.parquet").equals(benchmarks.load(store))


def test_a_store_without_the_table_is_one_line(store: Path) -> None:
    with pytest.raises(UserError, match="no table 'table9-paper'"):
        benchmarks.load(store, "table9-paper")
    with pytest.raises(UserError, match="no table in"):
        benchmarks.load(store / "empty")


def test_the_package_is_imported_without_pandas() -> None:
    script = "import sys, benchmarks; assert not {'pandas', 'numpy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2], timeout=60)
