"""What the options of tables change in the files that are written, and the words that have other files written."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from helpers import stores
from helpers.command_line import Call, refused
from helpers.manifests import FACTS, PAIR, finish, paper

from benchmarks.common.console import Outcome
from benchmarks.common.files import write_json
from benchmarks.common.workspace import Workspace
from benchmarks.driver.planning.plan import Request, make
from benchmarks.driver.reproduce import Options
from benchmarks.report import CostEntry
from benchmarks.store import manifest
from benchmarks.store.manifest.shapes import PlannedCost
from benchmarks.store.runs import Store

TABLE = "table1-paper"
TEX, APPENDIX, PAGE, CSV = "table1.tex", "table1-appendix.tex", "table1.md", "table1.csv"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Table 1 on one pair: three rows of two seeds with two epochs each, and what a step of two of them costs."""
    output = tmp_path / "store"
    costs = [{"row": row, "column": PAIR, "key": row[0] * 64} for row in ("student", "kd")]
    shown = paper(costs=[PlannedCost.model_validate(cost) for cost in costs])
    for cell in shown.cells:
        epochs = [{"epoch": epoch, "metrics": {"top1": 60.0 + epoch}, "losses": {}, "seconds": 1.0} for epoch in (1, 2)]
        Store(output).run(cell.key).set_metrics(epochs)
    finish(output, shown, {"student": (69.0, 69.3), "kd": (70.5, 71.0), "dkd": (71.0, 71.4)})
    for cost, rate in zip(costs, (200.0, 100.0), strict=True):
        figures = CostEntry(rate, 2**20, "CUDA allocated", 0, 0, 64, "cuda", 3)
        write_json(Store(output).cost(cost["key"]), {"label": "", "cost": asdict(figures), "environment": FACTS})
    manifest.save(output, TABLE, shown)
    return output


def taken(output: Path, table_folder: str) -> dict[str, bytes]:
    """The files of a table by name; they are taken away, so that those of another call are its own."""
    files = {}
    for file in (output / "tables" / table_folder).glob("[!.]*"):
        if file.name != "plan.json":
            files[file.name] = file.read_bytes()
            file.unlink()
    return files


def rendered(call: Call, store: Path, *options: str) -> dict[str, bytes]:
    code, out, err = call("render", TABLE, "--output", store, *options)
    files = taken(store, TABLE)
    named = {Path(line).name for line in out.splitlines() if line.startswith(str(store))}
    assert (code, err) == (0, "") and named == files.keys() - {"table1-runs.csv"}
    return files


KD = {
    (): r"70.60(14) & 70.66 & +1.50 \\",
    ("--style", "paper", "--published", "column"): r"70.60(14) & 70.66 & +1.50 \\",
    ("--ci",): r"70.60(127) & 70.66 & +1.50 \\",  # 12.706 times the deviation by the root of n
    ("--rank",): r"70.60(14) & 70.66 & +1.50 & 2.0 \\",
    ("--costs",): r"70.60(14) & 70.66 & +1.50 & 100 & 1.00 & 1 \\",
    ("--published", "none"): r"70.60(14) & +1.50 \\",
}
"""How KD's line of the LaTeX table ends with some options."""


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (("--style", "paper", "--published", "column"), set()),
        (("--ci",), {TEX, APPENDIX, PAGE}),
        (("--rank",), {TEX, PAGE}),
        (("--costs",), {TEX}),
        (("--published", "none"), {TEX}),
    ],
)
def test_an_option_changes_what_it_is_for_and_nothing_else(
    call: Call, store: Path, options: tuple[str, ...], changed: set[str]
) -> None:
    before, after = rendered(call, store), rendered(call, store, *options)
    assert before.keys() == after.keys() and {file for file in after if after[file] != before[file]} == changed
    assert KD[()] in before[TEX].decode() and KD[options] in after[TEX].decode()
    page = after[PAGE].decode()
    assert ("<ins>70.60</ins> ± 1.27 |" in page) == ("--ci" in options)
    assert ("<ins>70.60</ins> ± 0.14 | 2.0 |" in page) == ("--rank" in options)


def test_a_highlighted_row_is_shaded(call: Call, store: Path) -> None:
    lines = rendered(call, store, "--highlight", "kd")[TEX].decode().splitlines()
    assert [line[-len(KD[()]) :] for line in lines if line.startswith(r"\rowcolor")] == [KD[()]]


def test_full_style_has_all_in_one_file(call: Call, store: Path) -> None:
    apart, whole = rendered(call, store), rendered(call, store, "--style", "full")
    assert apart.keys() - whole.keys() == {APPENDIX} and whole.keys() < apart.keys()
    made = r"how it was made}\label{app:table1}"
    assert made in apart[APPENDIX].decode() and made not in apart[TEX].decode() and made in whole[TEX].decode()
    assert all(whole[name] == apart[name] for name in whole if name != TEX)


def test_figures_are_drawn_where_they_are_asked_for(call: Call, store: Path) -> None:
    without, drawn = rendered(call, store), rendered(call, store, "--figures")
    pair = "resnet56-resnet20"
    figures = (f"curves-{pair}", f"cost-{pair}", f"memory-{pair}", "best-last", "published")
    assert drawn.keys() - without.keys() == {f"table1-{name}.{end}" for name in figures for end in ("pdf", "png")}
    assert all(drawn[name] == content for name, content in without.items())


def test_a_run_whose_cells_are_all_there_writes_the_page_that_is_asked_for(call: Call, tmp_path: Path) -> None:
    """As `render` does: the options mean the same."""
    table = tmp_path / "mine.yaml"
    table.write_text(
        "name: mine\ntitle: Mine\npairs: [resnet14-resnet8]\nmethods: [student]\n"
        "presets:\n  demo: {protocol: digits-demo, seeds: [0, 1]}\n"
    )
    place = Workspace(torch.device("cpu"), tmp_path / "data", tmp_path / "checkpoints", tmp_path / "results")
    for cell in make(Request(str(table), preset="demo"), place).every_cell():
        stores.finish(place.output, cell, 70.0 + cell.seed)
    page = ("--ci", "--rank", "--style", "full", "--published", "none", "--costs", "--highlight", "student")

    def written(*words: str | Path) -> dict[str, bytes]:
        code, _, err = call(*words, "--preset", "demo")
        assert code == 0, err
        return taken(place.output, "mine-demo")

    run = (table, "--device", "cpu", "--no-cost")
    plain, asked = written(*run), written(*run, *page)
    assert asked == written("render", table, *page)
    assert b"95 \\% interval" in asked["mine.tex"] and b"95 \\% interval" not in plain["mine.tex"]
    assert plain.keys() - asked.keys() == {"mine-appendix.tex"}


def test_a_plan_has_the_hours_of_another_device(call: Call) -> None:
    words = ("table2", "--preset", "demo", "--methods", "student", "--pairs", "wrn_16_1-resnet8", "--device", "cpu")
    code, _, err = call(*words, "--dry-run", "--device-speed", "h100", "--workers", "2")
    assert code == 0 and re.search(r"3 cells to run on NVIDIA H100 SXM \(.*\) by 2 workers: about ", err), err
    assert "--device-speed h100 is for plans: add --dry-run" in refused(call, *words, "--device-speed", "h100")


def test_as_many_workers_share_a_gpu_as_is_said(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Options] = []

    def run(request: Request, workspace: Workspace, options: Options) -> Outcome:
        asked.append(options)
        return Outcome()

    monkeypatch.setattr("benchmarks.driver.reproduce.reproduce", run)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("KDBENCH_WORKERS", raising=False)
    for words, workers in (((), 2), (("--per-gpu", "3"), 6)):
        assert call("table2", "--preset", "demo", "--device", "cpu", *words)[0] == 0
        assert len(asked[-1].crew.places(torch.device("cuda"), most=99)) == workers


@pytest.mark.parametrize("form", ["csv", "json"])
@pytest.mark.parametrize(
    ("level", "lines", "facts"),
    [
        ("cell", 6, {"row": "kd", "pair": PAIR, "seed": 1, "state": "done", "last": 70.7, "best": 71.2}),
        ("epoch", 12, {"row": "kd", "pair": PAIR, "seed": 1, "epoch": 2, "value": 62.0, "metric.top1": 62.0}),
        ("cost", 2, {"row": "kd", "pair": PAIR, "images_per_second": 100.0, "peak_memory_bytes": 2**20}),
        ("verdict", 3, {"row": "kd", "pair": PAIR, "n": 2, "published": 70.66}),
    ],
)
def test_a_table_as_data(
    call: Call, store: Path, tmp_path: Path, form: str, level: str, lines: int, facts: dict[str, object]
) -> None:
    file = tmp_path / "table.data"
    words = ("data", "table1", "--out", file, "--output", store, "--level", level, "--format", form)
    assert call(*words) == (0, f"{file}: {lines} lines\n", "")
    text = file.read_text()
    records = json.loads(text) if form == "json" else list(csv.DictReader(io.StringIO(text)))
    wanted = {name: value if form == "json" else str(value) for name, value in facts.items()}
    assert len(records) == lines and wanted.items() <= next(
        record.items() for record in reversed(records) if record["row"] == "kd"
    )


def test_data_are_a_line_for_each_cell_as_csv_of_every_table(call: Call, store: Path, tmp_path: Path) -> None:
    stores.table(store, "student")
    file = tmp_path / "all.csv"
    assert call("data", "--out", file, "--output", store) == (0, f"{file}: 8 lines\n", "")
    lines = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [line["table"] for line in lines] == [stores.TABLE_FOLDER] * 2 + [TABLE] * 6
