"""The tables of the pages: rows with what is printed in them, what sorts them, and where each number leads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..model import CostTable, RowColumn, Table
from ..table_layout import Line, PrintedCell, TableLayout

NOTHING = PrintedCell()


@dataclass(frozen=True)
class Number:
    """A cell of a row: what is printed, the published value under it, and the page that it leads to ('': none)."""

    printed: PrintedCell
    published: PrintedCell = NOTHING
    href: str = ""

    @property
    def order(self) -> str:
        """What it is sorted by: the published value only where nothing of our own stands beside it."""
        value = self.printed.value or ("" if self.printed.word else self.published.value)
        return value if re.fullmatch(r"-?[\d.]+", value) else _amount(value)


@dataclass(frozen=True)
class PageRow:
    """A row; ``group`` is its family, or the pair of a table of costs."""

    label: str
    group: str
    numbers: tuple[Number, ...] = ()
    href: str = ""


def _amount(text: str) -> str:
    """A count of parameters as a number: 1.80M as 1800000."""
    match = re.fullmatch(r"([\d.]+)([KM])", text)
    return str(round(float(match[1]) * {"K": 1e3, "M": 1e6}[match[2]])) if match else ""


def slugs(keys: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Names by key for files and marks of a page: letters, digits and `._+@=-`, unique even when case is ignored."""
    used, names = {name.lower() for name in taken}, {}
    for key in keys:
        base = re.sub(r"[^A-Za-z0-9._+@=-]+", "-", key).strip(".-") or "x"
        name, number = base, 1
        while name.lower() in used:
            number += 1
            name = f"{base}-{number}"
        used.add(name.lower())
        names[key] = name
    return names


def accuracy_rows(
    table: Table, layout: TableLayout, links: Mapping[RowColumn, str]
) -> tuple[list[PageRow], list[PageRow]]:
    """The rows of methods, of literature alone too; and the teacher's, which belongs below whatever is sorted."""
    methods = iter([*table.plain, *(row for rows in table.families.values() for row in rows)])
    teacher: list[PageRow] = []
    body: list[PageRow] = []
    for group, line, under in _lines(layout):
        if line.kind == "published":
            numbers = tuple(Number(NOTHING, cell) for cell in line.cells)
            body.append(PageRow(line.label, group, numbers))
            continue
        row = next(methods) if teacher else None
        pages = [links.get((row.key, column.key), "") if row else "" for column in table.columns]
        pages += [""] * (len(line.cells) - len(pages))
        below = under.cells if under else (NOTHING,) * len(line.cells)
        numbers = tuple(map(Number, line.cells, below, pages))
        whole = next((page.partition("#")[0] for page in pages if page), "")
        page_row = PageRow(line.label + line.mark, row.family if row else "", numbers, whole)
        (body if row else teacher).append(page_row)
    return body, teacher


def _lines(layout: TableLayout) -> list[tuple[str, Line, Line | None]]:
    """Each row's line with its heading and the line of published values under it."""
    grouped: list[tuple[str, Line, Line | None]] = []
    for block in layout.blocks:
        group, free = "", False
        for line in block:
            if line.kind in ("heading", "panel"):
                group, free = line.label, False
            elif line.kind == "published" and free:
                grouped[-1] = (*grouped[-1][:2], line)
                free = False
            else:
                grouped.append((group, line, None))
                free = line.kind == "row"
    return grouped


def cost_rows(cost: CostTable, layout: TableLayout, links: Mapping[RowColumn, str]) -> list[PageRow]:
    """The rows of all pairs one below the other."""
    keys = {row.title: row.key for row in cost.rows}
    columns = iter(cost.columns)
    rows: list[PageRow] = []
    for block in layout.blocks:
        column = next(columns)
        for line in block:
            if line.kind == "panel":
                group = line.label
            else:
                href = links.get((keys.get(line.label, ""), column.key), "")
                rows.append(PageRow(line.label, group, tuple(Number(cell, href=href) for cell in line.cells), href))
    return rows
