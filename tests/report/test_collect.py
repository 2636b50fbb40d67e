"""What a written table says of its cells as a whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from helpers import stores

from benchmarks import report
from benchmarks.common.files import write_json
from benchmarks.report import CostEntry
from benchmarks.report.collect import collect, render, without_result
from benchmarks.report.collect_cost import collect_cost
from benchmarks.report.layouts import paper_table
from benchmarks.report.layouts.paper_table import Page
from benchmarks.report.table_layout import MISSING
from benchmarks.store import manifest
from benchmarks.store.runs import Store
from benchmarks.store.selection import Selection


def test_what_is_missing_is_counted_by_its_reason() -> None:
    states = ["done", "failed", "diverged", "refused", "missing", "interrupted", "failed"]
    assert without_result(states) == "5 of 7 cells without a result: 2 failed, 1 diverged, 2 left out"
    assert without_result(["done", "refused"]) == ""


def test_a_table_whose_columns_have_tasks_names_each_of_them_and_the_only_one_too(tmp_path: Path) -> None:
    """The protocol's lines name none there: without its heads a single column would be on nobody knows what."""
    one = stores.cell("student", 0)
    stores.finish(tmp_path, one, 70.0)
    plain = stores.shown(one).model_dump()
    columns = [{**plain["columns"][0], "key": f"a-b:{name}", "task": f"glue/{name}"} for name in ("cola", "mrpc")]
    cells = [{**plain["cells"][0], "column": column["key"]} for column in columns]
    manifest.save(tmp_path, "mine-paper", stores.shown(one, columns=columns, cells=cells, column_tasks=True))
    both, only = (render(tmp_path, "mine-paper", wanted=Selection(columns=pair)).text for pair in ((), ("a-b:mrpc",)))
    assert "<br>cola" in both and "<br>mrpc" in both and "Top-1, " in both
    assert "Top-1 on glue/mrpc, " in only and "cola" not in only


def test_what_a_training_costs_stands_once_however_many_metrics_it_has(tmp_path: Path) -> None:
    """And where the first metric is not defined, in the column of another one."""
    one, store = stores.cell("kd", 0), Store(tmp_path)
    stores.finish(tmp_path, one, 70.0)
    plain = stores.shown(one).model_dump()
    metrics = {"a-b:coco.APs": "APs", "a-b:coco.top1": "top1", "a-b:coco.best": "top1"}
    columns = [{**plain["columns"][0], "key": key, "task": "coco", "metric": metrics[key]} for key in metrics]
    cells = [{**plain["cells"][0], "column": key} for key in metrics]
    costs = [{"row": "kd", "column": key, "key": "c" * 64} for key in metrics]
    shown = stores.shown(one, columns=columns, cells=cells, costs=costs)
    entry = CostEntry(100.0, 2**30, "CUDA allocated", 0, 0, 8, "H200", 8)
    write_json(store.cost("c" * 64), {"label": "kd", "cost": asdict(entry), "environment": stores.FACTS})
    cost = collect_cost(shown, store, collect(shown, store))
    assert cost and [column.key for column in cost.columns] == ["a-b:coco.top1"]


def test_a_row_whose_cost_was_not_measured_is_missing_there(tmp_path: Path) -> None:
    """One that was not run is in neither."""
    cells = [stores.cell(name, 0) for name in ("kd", "dkd", "rkd")]
    for one in cells[:2]:
        stores.finish(tmp_path, one, 70.0)
    shown, store = stores.shown(*cells, costs=[{"row": "kd", "column": "a-b", "key": "c" * 64}]), Store(tmp_path)
    entry = CostEntry(100.0, 2**30, "CUDA allocated", 0, 0, 8, "H200", 8)
    write_json(store.cost("c" * 64), {"label": "kd", "cost": asdict(entry), "environment": stores.FACTS})
    table = collect(shown, store)
    cost = collect_cost(shown, store, table)
    assert cost and [row.key for row in cost.rows] == ["kd", "dkd"]
    tex = paper_table.layout(table, Page(costs=True), cost)
    words = {
        line.label: [cell.word for cell in line.cells[-3:]] for block in tex.blocks for line in block if line.cells
    }
    assert words["DKD"] == [MISSING] * 3 and words["RKD"] == [""] * 3
    assert "not measured: 1 of 2 cells" in report.render_cost(cost)[".md"]


def test_rows_that_were_planned_one_by_one_have_titles_of_their_own(tmp_path: Path) -> None:
    first, second = stores.cell("kd", 0), stores.cell("dkd", 0)
    plain = stores.shown(first, second).model_dump()
    rows = [{**row, "title": "KD"} for row in plain["rows"]]
    table = collect(stores.shown(first, second, rows=rows), Store(tmp_path))
    assert [row.title for row in table.rows] == ["KD (kd)", "KD (dkd)"]
