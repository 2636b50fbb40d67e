"""Tables: figures known by hand, nothing hidden, the same bytes, and LaTeX that compiles in both ways."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.report import Column, CostEntry, CostRow, CostTable, Published, SeedResult, Table, TableEntry, TableRow
from benchmarks.report.formats.latex_text import escape
from benchmarks.report.formats.markdown import escape as escape_markdown
from benchmarks.report.layouts import cost_table
from benchmarks.report.seed_statistics import gap, summarise, usual_n
from kd_methods.errors import UserError


def done(*values: float, best: float = 0.5) -> tuple[SeedResult, ...]:
    return tuple(SeedResult(seed, "done", value, value + best) for seed, value in enumerate(values))


def make_table(kd: tuple[SeedResult, ...] = done(70.0, 71.0, 72.0), published: Published | None = None) -> Table:
    pair = "wrn_40_2-wrn_16_2"
    rows = (
        TableRow("student", "Student", "reference", {pair: TableEntry(done(80.0, 80.0, 80.0))}),
        TableRow("kd", "KD", "Logit", {pair: TableEntry(kd, published)}),
        TableRow("at", "AT", "Feature", {pair: TableEntry(done(69.0, 69.0, 69.0))}, our_choice=("beta = 1",)),
        TableRow("sp", "SP", "Relation", {pair: TableEntry(done(60.0, 60.0, 60.0))}),
    )
    column = Column(pair, "wrn_40_2", "wrn_16_2", 75.6, "", Published(75.61, None, "repo @abc", "file"))
    return Table(
        "table_x",
        "Title",
        "Top-1 accuracy (%)",
        (column,),
        rows,
        ("p v1: 240 epochs",),
        (),
        ("A note.",),
        ("2025-11-20",),
    )


def empty_table() -> Table:
    table = make_table()
    none = tuple(SeedResult(seed, "missing") for seed in range(3))
    rows = tuple(replace(row, entries={key: TableEntry(none) for key in row.entries}) for row in table.rows)
    return replace(table, rows=rows)


def make_cost() -> CostTable:
    table = make_table()
    pair = table.columns[0].key

    def entry(speed: float | None, extra: int = 0) -> CostEntry:
        return CostEntry(speed, 512 * 2**20, "CUDA allocated", extra, 0, 64, "H200", 50)

    rows = (
        CostRow("student", "Student", "reference", {pair: entry(2000.0)}),
        CostRow("kd", "KD", "Logit", {pair: entry(1500.0)}),
        CostRow("fitnet", "FitNet", "Feature", {pair: entry(None, 16_800)}),
    )
    return CostTable("table_x", "Cost", table.columns, rows)


def lines_of(table: Table) -> dict[str, dict[str, str]]:
    return {line["row"]: line for line in csv.DictReader(io.StringIO(report.render(table)[".csv"]))}


def test_mean_and_sample_deviation_by_hand() -> None:
    summary = summarise(TableEntry(done(70.0, 71.0, 72.0)))
    assert (summary.n, summary.mean_last, summary.std_last, summary.mean_best) == (3, 71.0, 1.0, 71.5)
    one = summarise(TableEntry(done(70.0)))
    assert (one.n, one.mean_last, one.std_last) == (1, 70.0, None)
    assert summarise(None).mean_last is None


def test_runs_without_a_number_are_not_finished() -> None:
    runs = (
        SeedResult(0, "done", 70.0, 70.5),
        SeedResult(1, "done", float("nan")),
        SeedResult(2, "diverged", 1.0),
        SeedResult(3, "missing"),
    )
    summary = summarise(TableEntry(runs))
    assert (summary.n, summary.failed, summary.diverged, summary.missing, summary.planned) == (1, 1, 1, 1, 4)
    assert summary.mean_last == 70.0


@pytest.mark.parametrize(("rule", "expected"), [("last", 0.5), ("best", 1.0), ("unknown", None)])
def test_gap_follows_the_published_epoch_rule(rule: str, expected: float | None) -> None:
    summary = summarise(TableEntry(done(70.0, 71.0, 72.0)))
    assert gap(summary, Published(70.5, None, "s", rule)) == expected  # type: ignore[arg-type]
    assert gap(summary, Published(70.5, None, "s", rule, comparable=False, reason="r")) is None  # type: ignore[arg-type]


def test_best_rule_is_marked_and_compared_with_our_best() -> None:
    text = report.render(make_table(published=Published(70.5, None, "repo @abc", "best")))
    assert "70.50{$^{b}$}" in text[".tex"] and r"70.50{$^{b}$\,($+1.00$)}" in text["-appendix.tex"]
    assert "70.50<sup>b</sup> (+1.00)" in text[".md"]
    assert "best epoch on the test set" in text["-appendix.tex"]


def test_best_mean_needs_every_finished_run() -> None:
    runs = (SeedResult(0, "done", 70.0, 71.0), SeedResult(1, "done", 72.0))
    assert summarise(TableEntry(runs)).mean_best is None


def test_n_stands_once_in_the_caption_and_where_it_differs() -> None:
    tex = report.render(make_table())[".tex"]
    assert "n = 3, last epoch" in tex and "n{=}" not in tex
    partial = make_table(kd=(*done(70.0, 72.0), SeedResult(2, "diverged")))
    assert usual_n(partial) == 3
    text = report.render(partial)
    assert "n = 3 seeds unless another n is given" in text[".md"]
    assert "71.00(141){$^{2/3}$}" in text[".tex"]
    assert "KD, wrn_40_2–wrn_16_2: 2 finished, 1 diverged of 3" in text[".md"]  # noqa: RUF001
    assert "(n=2/3)" in text[".md"]


@pytest.mark.parametrize(
    ("statuses", "word"),
    [
        (("diverged",) * 3, "div."),
        (("failed",) * 3, "fail."),
        (("diverged", "missing", "missing"), "div. 1/3"),
        (("missing",) * 3, "--"),
        ((), "--"),
    ],
)
def test_cells_without_a_mean_say_why(statuses: tuple[str, ...], word: str) -> None:
    runs = tuple(SeedResult(seed, status) for seed, status in enumerate(statuses))  # type: ignore[arg-type]
    text = report.render(make_table(kd=runs))
    assert f"| KD | {word} |" in text[".md"]
    assert (word if word == "--" else rf"\textit{{{word}}}") in text[".tex"]


def test_what_is_not_comparable_has_a_dagger_and_no_gap() -> None:
    published = Published(70.5, 0.3, "repo @abc", "last", comparable=False, reason="another teacher")
    text = report.render(make_table(published=published))
    assert r"70.50{$^{\dagger{}}$}" in text[".tex"]
    assert "| 70.50 ± 0.30<sup>†</sup> |" in text[".md"]
    assert "not comparable: another teacher." in text[".tex"]
    line = lines_of(make_table(published=published))["kd"]
    assert (line["gap"], line["comparable"], line["reason"]) == ("", "false", "another teacher")
    tex = report.render(make_table(published=published))[".tex"]
    assert "deviations that are stated beside it are in the Markdown page and the CSV" in tex


def test_deviations_stand_in_the_caption() -> None:
    table = replace(make_table(), deviations=("5 epochs instead of 240",))
    text = report.render(table)
    assert "not the paper's protocol." in text[".tex"].split(r"\caption{")[1].splitlines()[0]
    assert "NOT the paper's protocol: 5 epochs instead of 240." in text["-appendix.tex"]
    assert "**NOT the paper's protocol: 5 epochs instead of 240.**" in text[".md"] and "AT: beta = 1" in text[".md"]
    assert "paper's protocol" not in "".join(report.render(make_table()).values())


def test_csv_holds_every_figure() -> None:
    lines = lines_of(make_table(published=Published(70.5, None, "repo @abc", "last")))
    kd = lines["kd"]
    assert (kd["n"], kd["mean_last"], kd["std_last"], kd["mean_best"]) == ("3", "71.0000", "1.0000", "71.5000")
    assert (kd["published"], kd["gap"], kd["source"], kd["rank"]) == ("70.5000", "0.5000", "repo @abc", "2")
    assert [kd[f"last.{seed}"] for seed in range(3)] == ["70.0000", "71.0000", "72.0000"]
    assert (kd["ci95_last"], kd["tied"], kd["deviations"]) == ("2.4841", "false", "[]")
    assert lines["teacher"]["gap"] == "-0.0100"


def test_a_table_in_which_nothing_ran() -> None:
    text = report.render(empty_table())
    assert "no run has finished yet" in text[".tex"]
    assert "4 of 4 cells have no finished run" in text[".md"]
    assert r"\bfseries" not in text[".tex"] and "**" not in text[".md"], "nothing is the best"


def test_escapes() -> None:
    assert escape("wrn_40_2 & 5% {x}") == r"wrn\_40\_2 \& 5\% \{x\}"
    assert escape("\\") == r"\textbackslash{}"
    assert escape("--set a=1\nb") == "-{}-set a=1 b"
    assert escape("模") == "U+6A21"
    assert escape("e\u0301") == escape("\u00e9") == r"\'{e}" and escape("\u1ebf") == r"\'{\^{e}}"
    assert escape_markdown("a|b") == r"a\|b" and escape_markdown("wrn_40_2 __init__") == r"wrn_40_2 \_\_init\_\_"
    assert r"wrn\_40\_2" in report.render(make_table())[".tex"]


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    first = report.write(make_table(), tmp_path / "a", "table.v1")
    second = report.write(make_table(), tmp_path / "b", "table.v1")
    assert [path.name.removeprefix("table.v1") for path in first] == [".tex", "-appendix.tex", ".md", ".csv"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in first)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.write(make_table(), tmp_path, "table")
    before = (tmp_path / "table.tex").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space"):
        report.write(empty_table(), tmp_path, "table")
    assert (tmp_path / "table.tex").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_throughput_is_relative_to_that_of_kd() -> None:
    text = report.render_cost(make_cost())
    assert "| KD | 1500 | 1.00 | 512 | 0 | 0 |" in text[".md"] and "| Student | 2000 | 1.33 |" in text[".md"]
    assert "| FitNet | -- | -- | 512 | 16.8K | 0 |" in text[".md"]
    assert "batch 64, 50 steps, H200" in text[".tex"] and "CUDA allocated" in text[".tex"]
    assert "536870912" in text[".csv"]


def test_costs_as_data_have_what_is_printed() -> None:
    """Spread and ratio of the throughput, and the memory of each part in a column of its own."""
    cost = make_cost()
    pair = cost.columns[0].key
    split = {"weights": 1, "gradients": 2, "optimiser": 3, "teacher": 4, "activations": 5}
    seconds = [64 / rate for rate in (1000, 1400, 1500, 1600, 2000)]
    entry = replace(cost.rows[1].entries[pair], memory_split=split, step_seconds=seconds)
    rows = (cost.rows[0], replace(cost.rows[1], entries={pair: entry}), cost.rows[2])
    lines = {
        line["row"]: line for line in csv.DictReader(io.StringIO(report.render_cost(replace(cost, rows=rows))[".csv"]))
    }
    assert [lines["kd"][f"{held}_bytes"] for held in split] == ["1", "2", "3", "4", "5"]
    assert lines["student"]["ratio"] == "1.3333" and lines["student"]["ratio_to"] == "kd"
    assert float(lines["kd"]["images_per_second_spread"]) == 300.0, "half the range of the middle half"
    assert not lines["fitnet"]["ratio"] and not lines["fitnet"]["weights_bytes"]


def test_cost_names_what_was_measured_otherwise() -> None:
    cost = make_cost()
    pair = cost.columns[0].key
    other = replace(cost.rows[1], entries={pair: replace(cost.rows[1].entries[pair], batch_size=32)})
    text = report.render_cost(replace(cost, rows=(cost.rows[0], other, cost.rows[2])))[".md"]
    assert "batch 32, 50 steps, H200: KD, wrn_40_2–wrn_16_2" in text  # noqa: RUF001


def compile_tex(folder: Path, name: str) -> None:
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", name]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
    assert result.returncode == 0, result.stdout[-2000:]
    assert (folder / name).with_suffix(".pdf").stat().st_size > 1000


def awkward_table() -> Table:
    """A partial cell, a diverged one, marks of every kind, and text that LaTeX would take for commands."""
    table = make_table(
        kd=(*done(70.0, 72.0), SeedResult(2, "diverged")), published=Published(70.5, 0.3, "a_b #1", "best")
    )
    row = TableRow("x", r"*[Odd] \row & 100% µ模", "Fam_ily", {}, ("a_1 = 2^3", "--flag"), "~ <x> | “y”")
    return replace(table, rows=(*table.rows, row), deviations=("5 epochs_instead",))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_compiles_alone_and_by_input(tmp_path: Path) -> None:
    for stem, table in {"table1": make_table(), "odd_2": awkward_table(), "none": empty_table()}.items():
        report.write(table, tmp_path, stem)
    report.write_cost(make_cost(), tmp_path, "cost")
    stems = ("table1", "odd_2", "none", "cost")
    for stem in stems:
        compile_tex(tmp_path, f"{stem}.tex")
    for options in ("10pt", "twocolumn"):
        body = "\n\n".join(rf"\input{{{stem}}}" for stem in stems)
        preamble = rf"\documentclass[{options}]{{article}}\usepackage{{booktabs,siunitx,graphicx}}"
        text = rf"{preamble}\begin{{document}}Text. {body} Text.\end{{document}}"
        (tmp_path / "paper.tex").write_text(text, encoding="utf-8")
        compile_tex(tmp_path, "paper.tex")
        assert len(re.findall(r"\\contentsline|\\newlabel\{tab:", (tmp_path / "paper.aux").read_text())) >= 4


def test_a_refused_pair_is_not_a_missing_one() -> None:
    reason = "method 'kd' is not made for 'this'"
    table = make_table(kd=(SeedResult(0, "refused", message=reason), SeedResult(1, "refused", message=reason)))
    text = report.render(table)[".md"]
    assert "n/a" in text and reason in text and "fail" not in text
    row = lines_of(table)["kd"]
    assert (row["refused"], row["failed"], row["missing"], row["value"]) == ("2", "0", "0", "")


def test_the_mean_over_tasks_is_taken_per_seed_and_counts_a_task_once() -> None:
    columns = tuple(
        Column(f"p:{key}", "T", "S", 80.0 + i, task=task, metric=metric)
        for i, (key, task, metric) in enumerate(
            (("a", "glue/a", "f1"), ("m", "glue/m", "accuracy"), ("m.accuracy_mm", "glue/m", "accuracy_mm"))
        )
    )
    done = {
        key: TableEntry(tuple(SeedResult(seed, "done", last=value + seed, best=90.0) for seed in (0, 1)))
        for key, value in (("p:a", 10.0), ("p:m", 20.0), ("p:m.accuracy_mm", 40.0))
    }
    refused = {
        **done,
        "p:a": TableEntry(
            (SeedResult(0, "refused", message="two classes"), SeedResult(1, "refused", message="two classes"))
        ),
    }
    short = {**done, "p:m": TableEntry((SeedResult(0, "done", last=20.0, best=90.0), SeedResult(1, "missing")))}
    rows = tuple(
        TableRow(key, key, "logit", entries) for key, entries in (("kd", done), ("dkd", refused), ("rkd", short))
    )
    columns, rows = report.with_means(columns, rows)
    assert [column.key for column in columns] == ["p:a", "p:m", "p:m.accuracy_mm", "p:mean"]
    assert columns[-1].teacher_accuracy == (80 + (81 + 82) / 2) / 2 and columns[-1].metric == "of 2"
    runs = {row.key: row.entries["p:mean"].runs for row in rows}
    assert [run.last for run in runs["kd"]] == [20.0, 21.0]
    assert {run.status for run in runs["dkd"]} == {"refused"}
    assert [(run.status, run.last) for run in runs["rkd"]] == [("done", 20.0), ("missing", None)]
    texts = report.render(Table("t", "T", "The metric named over each column", columns, rows))
    task, metric = (next(line for line in texts[".tex"].splitlines() if line.startswith(w)) for w in ("Task", "Metric"))
    assert re.findall(r"\{c\}\{([^}]+)\}", task)[:4] == ["a", "m", "m", "mean"]
    assert re.findall(r"\{c\}\{([^}]+)\}", metric)[:4] == ["f1", "accuracy", r"accuracy\_mm", "of 2"]
    assert "T<br>S<br>mean<br>of 2" in texts[".md"] and "20.50** ± 0.71" in texts[".md"]
    assert "S on m (accuracy): 1 finished, 1 missing of 2" in texts[".md"]


def of_tasks(pair: str, gain: float = 0.0) -> dict[str, TableEntry]:
    """On three tasks, one of them with two metrics, in which the gain lies."""
    values = {"cola.mcc": 40.0, "sst2": 80.0, "mnli": 70.0 + gain, "mnli.accuracy_mm": 72.0 + gain}
    return {f"{pair}:{key}": TableEntry(done(value)) for key, value in values.items()}


def pair_columns(pair: str) -> list[Column]:
    metrics = {"cola.mcc": "mcc", "sst2": "accuracy", "mnli": "accuracy", "mnli.accuracy_mm": "accuracy_mm"}
    return [
        Column(f"{pair}:{key}", "T", "S", task=f"glue/{key.partition('.')[0]}", metric=metric, titles=("BERT", "Small"))
        for key, metric in metrics.items()
    ]


def test_pairs_of_the_same_networks_have_a_mean_each() -> None:
    columns = (*pair_columns("first"), *pair_columns("spread"))
    kd = TableRow("kd", "KD", "logit", of_tasks("first") | of_tasks("spread", 30.0))
    columns, (kd,) = report.with_means(columns, (kd,))
    means = {column.key: column.titles for column in columns if column.task == "mean"}
    assert means == {"first:mean": ("BERT", "Small"), "spread:mean": ("BERT", "Small")}
    last = {key: kd.entries[key].runs[0].last for key in means}
    assert last == pytest.approx({"first:mean": 191 / 3, "spread:mean": 221 / 3})


@pytest.mark.parametrize(("rule", "printed"), [("file", " (+0.50)"), ("last", " (+0.50)"), ("unknown", "<sup>u</sup>")])
def test_a_teachers_gap_is_that_of_its_last_epoch_or_its_file(rule: str, printed: str) -> None:
    column = Column("p", "T", "S", 73.5, teacher_published=Published(73.0, None, "a paper", rule))  # type: ignore[arg-type]
    texts = report.render(Table("t", "T", "Top-1", (column,), ()))
    assert f"| ↳ published | 73.00{printed} |" in texts[".md"]
    assert ("epoch rule not known" in texts[".md"]) == (rule == "unknown")
    (line,) = csv.DictReader(io.StringIO(texts[".csv"]))
    assert (line["gap"], line["epoch_rule"]) == ("" if rule == "unknown" else "0.5000", rule)


def test_pairs_of_one_networks_are_not_tasks_of_one_pair() -> None:
    columns = tuple(
        Column(key, "T", "S", task=task) for key, task in (("random", "rte"), ("spread", "rte"), ("o", "mrpc"))
    )
    assert report.with_means(columns, ()) == (columns, ())


def test_a_gain_is_over_columns_of_one_unit() -> None:
    """Two points in both columns of one of three tasks are 0.67 on average; without a mean over tasks there is none."""
    columns, rows = tuple(pair_columns("p")), []
    for key, gain in (("student", 0.0), ("kd", 2.0)):
        rows.append(TableRow(key, key, "logit", of_tasks("p", gain)))
    columns, means = report.with_means(columns, tuple(rows))
    tex = report.render(Table("t", "T", "The metric named over each column", columns, means))[".tex"]
    assert "+0.67" in tex and "mean over tasks less that of student." in tex
    of_one_task = tuple(column for column in columns if column.task == "glue/mnli")
    tex = report.render(Table("t", "T", "The metric named over each column", of_one_task, means))[".tex"]
    assert "Delta" not in tex and "less that of" not in tex


def test_what_one_training_costs_stands_once_in_the_table_with_its_task() -> None:
    entry = CostEntry(2000.0, 512 * 2**20, "CUDA allocated", 0, 0, 64, "H200", 50)
    columns = tuple(column for column in pair_columns("p") if column.metric != "accuracy_mm")
    cost = CostTable("t", "T", columns, (CostRow("kd", "KD", "logit", {c.key: entry for c in columns}),))
    panels = [line for line in report.render_cost(cost)[".md"].splitlines() if "BERT to Small" in line]
    assert [panel.partition(" on ")[2].strip(" *|") for panel in panels] == ["cola", "sst2", "mnli"]


def test_costs_of_several_machines_are_not_compared() -> None:
    """A row that was measured elsewhere, or imported, is as fast as its machine."""
    here = CostEntry(1000.0, 512 * 2**20, "CUDA allocated", 0, 0, 64, "cuda:0", 50, machine="H200")
    there = replace(here, images_per_second=250.0, machine="A100")
    column = pair_columns("p")[0]
    entries = {"kd": here, "at": replace(here, images_per_second=900.0), "dkd": there}
    rows = tuple(CostRow(key, key.upper(), "logit", {column.key: entry}) for key, entry in entries.items())
    cost = CostTable("t", "T", (column,), rows)
    page, lines = report.render_cost(cost)[".md"], list(csv.DictReader(io.StringIO(report.render_cost(cost)[".csv"])))
    assert {line["row"]: (line["ratio"], line["machine"]) for line in lines} == {
        "kd": ("1.0000", "H200"), "at": ("0.9000", "H200"), "dkd": ("", "A100"),
    }  # fmt: skip
    assert "cuda:0 of A100: DKD" in page and "only between figures of one machine" in page
    over_all = cost_table.over_columns(cost, rows[2])
    assert over_all and over_all[0].value == 250 and over_all[0].ratio is None
