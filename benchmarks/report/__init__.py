"""Tables as LaTeX, Markdown and CSV: pure functions of `Table` and `CostTable`, the same bytes every time.

>>> from benchmarks import report
>>> report.write(table, Path("results"), "table2")            # table2.tex, table2.md, table2.csv
>>> report.write_cost(cost, Path("results"), "table2-cost")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..common.files import write_text
from .layouts.paper_table import PAPER, Page
from .model import Column, CostEntry, CostRow, CostTable, Published, SeedResult, Table, TableEntry, TableRow
from .seed_statistics import with_means
from .table_layout import TableLayout

__all__ = [
    "PAPER", "Column", "CostEntry", "CostRow", "CostTable", "Page", "Published", "SeedResult",
    "Table", "TableEntry", "TableRow",
    "draw", "render", "render_cost", "with_means", "write", "write_cost", "write_efficiency", "write_layout",
]  # fmt: skip


APPENDIX = "-appendix.tex"
"""End of the name of the file that has what a paper's table leaves out."""


def render(table: Table, page: Page = PAPER, cost: CostTable | None = None) -> dict[str, str]:
    """End of a file's name to its text: `.tex`, `-appendix.tex`, `.bib`, `.md`, `.csv`.

    Args:
        table: what is shown.
        page: how the LaTeX shows it.
        cost: what its rows cost, which the LaTeX shows if the page wants it.
    """
    from .formats import csv_file as csv
    from .formats import latex, latex_appendix, markdown
    from .layouts import accuracy_table, paper_table

    full, paper = accuracy_table.layout(table), paper_table.layout(table, page, cost)
    bibliography = latex_appendix.bibliography(table)
    name = table.name if bibliography else ""
    after = latex_appendix.body(table, full, paper)
    texts = {".tex": latex.render(paper, name), APPENDIX: latex.document(after)}
    if page.style == "full":
        texts = {".tex": latex.document(f"{latex.body(paper)}\n\n{after}", name, latex.packages(paper))}
    if bibliography:
        texts[".bib"] = bibliography
    return {**texts, ".md": markdown.render(full), ".csv": csv.render(table)}


def render_cost(cost: CostTable) -> dict[str, str]:
    """As `render`, for what the methods cost: `.tex`, `.md`, `.csv`."""
    from .formats import csv_file as csv
    from .formats import latex, markdown
    from .layouts import cost_table

    layout = cost_table.layout(cost)
    return {".tex": latex.render(layout), ".md": markdown.render(layout), ".csv": csv.render_cost(cost)}


def write_efficiency(
    table: Table,
    curves: Mapping[tuple[str, str, int], list[float]],
    ours: str,
    against: Sequence[str],
    folder: Path,
) -> list[Path]:
    """Write epochs to the plain student's best, and the ARI of the row ``ours`` against others, as .tex and .md."""
    from .layouts import efficiency

    return write_layout(efficiency.layout(table, curves, ours, against), folder)


def write_layout(layout: TableLayout, folder: Path) -> list[Path]:
    """Write `layout`.tex and .md into `folder`, each whole or not at all, and return their paths."""
    from .formats import latex, markdown

    return _write({".tex": latex.render(layout), ".md": markdown.render(layout)}, folder, layout.name)


def write(
    table: Table,
    folder: Path,
    name: str,
    page: Page = PAPER,
    cost: CostTable | None = None,
) -> list[Path]:
    """Write `render`'s texts into ``folder`` as ``name`` with suffixes, whole or not at all; returns the paths.

    An appendix of an earlier call goes where this page has none apart: read after it, it would define labels twice.
    """
    texts = render(table, page, cost)
    if APPENDIX not in texts:
        (folder / f"{name}{APPENDIX}").unlink(missing_ok=True)
    return _write(texts, folder, name)


def draw(
    table: Table, curves: Mapping[tuple[str, str, int], list[float]], cost: CostTable | None, folder: Path
) -> list[Path]:
    """Write the table's figures into ``folder`` as PDF and PNG; ``curves`` are by row, column and seed."""
    from .figures import table_figures

    return table_figures.draw(table, curves, cost, folder)


def write_cost(cost: CostTable, folder: Path, name: str) -> list[Path]:
    """As `write`, for what the methods cost."""
    return _write(render_cost(cost), folder, name)


def _write(texts: Mapping[str, str], folder: Path, name: str) -> list[Path]:
    paths = []
    for suffix, text in texts.items():
        # Not with_suffix: a name may hold a dot.
        path = folder / f"{name}{suffix}"
        write_text(path, text)
        paths.append(path)
    return paths
