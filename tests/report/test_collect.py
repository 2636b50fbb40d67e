"""What a written table says of its cells as a whole."""

from __future__ import annotations

from pathlib import Path

from helpers import stores

from benchmarks.report.collect import render, without_result
from benchmarks.store import manifest
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
