"""Figures: the same bytes, the width of a column, and everything in them has a name."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import Column, Published, SeedResult, Table, TableEntry, TableRow
from benchmarks.report.figures import drawing as figures
from benchmarks.report.figures import table_figures
from benchmarks.report.figures.cost_figures import accuracy
from benchmarks.report.seed_statistics import mean_curve, whole


def test_figures_are_as_wide_as_a_column_and_the_same_bytes_again(tmp_path: Path) -> None:
    def drawn() -> tuple[bytes, bytes]:
        fig = accuracy({"KD": (3.0, 70.0), "DKD": (4.0, 72.0)}, "ms", "top-1")
        assert fig.get_size_inches()[0] == 3.3
        assert {text.get_text() for text in fig.axes[0].texts} == {"KD", "DKD"}
        return figures.pdf(fig), figures.png(fig)

    pdf, png = drawn()
    assert (pdf, png) == drawn()
    assert b"CreationDate" not in pdf and pdf.startswith(b"%PDF") and png.startswith(b"\x89PNG")


def test_names_of_points_do_not_overprint_each_other() -> None:
    _, (axes,) = figures.figure()
    axes.plot([0, 1], [0, 1], "")
    figures.named(axes, {f"method-{i}": (0.5, 0.5) for i in range(6)})
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_the_front_has_what_no_other_is_cheaper_and_better_than() -> None:
    assert figures.pareto([(3, 5), (1, 2), (2, 1), (2, 4), (4, 5)]) == [(1, 2), (2, 4), (3, 5)]


def test_lines_of_a_figure_are_told_apart_without_colour() -> None:
    looks = [figures.look(i) for i in range(16)]
    assert len({(str(look["linestyle"]), look["marker"]) for look in looks}) == 16


def test_a_figure_names_the_task_and_the_metric_where_a_table_has_several() -> None:
    tasks = {"p:cola": ("glue/cola", "mcc"), "p:sst2": ("glue/sst2", "accuracy"), "p:sst2.f1": ("glue/sst2", "f1")}
    columns = tuple(Column(key, "T", "S", task=task, metric=metric) for key, (task, metric) in tasks.items())
    entry = TableEntry((SeedResult(0, "done", 50.0, 51.0),), Published(49.0, None, "paper A", "last"))
    rows = (TableRow("kd", "KD", "logit", {column.key: entry for column in columns}),)
    curves = {("kd", column.key, 0): [40.0, 50.0] for column in columns}
    drawn = dict(
        table_figures._figures(Table("t", "T", "The metric named over each column", columns, rows), curves, None)
    )
    (sst2,) = drawn["curves-p:sst2"].axes
    assert sst2.get_ylabel() == "Accuracy (%)" and sst2.get_xlabel() == "epoch, T to S on sst2"
    assert drawn["published-mcc"].axes[0].get_xlabel() == "published Matthews correlation (x100)"
    assert [len(line.get_xdata()) for line in drawn["best-last"].axes[0].lines] == [2, 1], "a run, not a metric"


def test_pairs_that_differ_in_how_the_student_starts_are_both_drawn() -> None:
    columns = tuple(Column(key, "T", "S", task="coco", metric="mAP") for key in ("plain", "inheriting"))
    entry = TableEntry((SeedResult(0, "done", 50.0, 51.0),))
    rows = (TableRow("kd", "KD", "logit", {column.key: entry for column in columns}),)
    drawn = dict(table_figures._figures(Table("t", "T", "AP", columns, rows), {}, None))
    assert len(drawn["best-last"].axes[0].lines[0].get_xdata()) == 2


def test_columns_of_library_networks_are_each_drawn() -> None:
    """Their names have a colon of their own."""
    students = ("timm:resnet18", "timm:resnet10t")
    teacher = "timm:resnet50"
    columns = tuple(Column(f"{teacher}-{name}", teacher, name, task="coco", metric="mAP") for name in students)
    entry = TableEntry((SeedResult(0, "done", 50.0, 51.0),))
    rows = (TableRow("kd", "KD", "logit", {column.key: entry for column in columns}),)
    assert table_figures._best_less_last(Table("t", "T", "AP", columns, rows)) == {"KD": [1.0, 1.0]}


def test_a_mean_curve_is_over_the_seeds_that_went_the_whole_way() -> None:
    curves = [(1.0, 2.0, 3.0), (), (5.0, 5.0), (3.0, 4.0, 5.0)]
    assert whole(curves) == [curves[0], curves[3]] and mean_curve(curves) == [2.0, 3.0, 4.0]
    assert mean_curve([]) == []


def test_titles_are_text_and_not_mathematics(tmp_path: Path) -> None:
    column = Column("a-b", "a", "b", task="coco", metric="mAP")
    entry = TableEntry((SeedResult(0, "done", 50.0, 51.0), SeedResult(1, "done", 51.0, 52.0)))
    titles = {"a": r"KD ($\bm{x}$)", "b": "_m"}
    rows = tuple(TableRow(key, title, "logit", {column.key: entry}) for key, title in titles.items())
    curves = {(row.key, column.key, seed): [1.0, 2.0] for row in rows for seed in (0, 1)}
    drawn = dict(table_figures._figures(Table("t", "T", "AP", (column,), rows), curves, None))
    legend = drawn["curves-a-b"].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [r"KD (\$\bm{x}\$)", "m"]
    assert len(figures.write(drawn["curves-a-b"], tmp_path / "x")) == 2


def test_the_front_s_steps_are_where_methods_are() -> None:
    """From each method the line goes on as accurate as it is, to the next one's cost."""
    points = {"a": (300.0, 70.0), "b": (200.0, 72.0), "c": (100.0, 73.0)}
    for cheaper in (-1, 1):
        given = points if cheaper < 0 else {key: (400 - x, y) for key, (x, y) in points.items()}
        (axes,) = accuracy(given, "images/s", "top-1", cheaper=cheaper).axes
        front = next(line for line in axes.lines if line.get_label() == "Pareto front")
        assert front.get_drawstyle() == "steps-post" and list(front.get_xdata()) == [x for x, _ in given.values()]
