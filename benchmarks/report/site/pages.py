"""A store as a folder of static pages: tables that sort and filter, and behind each number where it comes from.

The pages work from a disk as from a server and ask for nothing outside their folder. The same store gives the same
bytes. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kd_methods.errors import UserError

from ...common.console import say
from ...common.files import read_bytes, write_bytes
from ...store import manifest
from ...store.manifest.shapes import Manifest
from ...store.runs import Store
from .. import citations, explain, verdicts
from ..collect import collect
from ..collect_cost import collect_cost
from ..explain import Explanation
from ..layouts import accuracy_table, cost_table
from ..model import STUDENT, CostTable, RowColumn, Table
from ..table_layout import signed
from . import curves as site_curves
from .tables import PageRow, accuracy_rows, cost_rows, slugs

FILES = Path(__file__).with_name("files")

MARK = '<meta name="generator" content="kd-benchmark">'
"""Near the begin of each page: by it a page is known as one of ours."""


@dataclass(frozen=True)
class _Shown:
    """A table of the store as its pages need it; the explanations by (row, column)."""

    table_folder: str
    pages_folder: str
    planned: Manifest
    table: Table
    cost: CostTable | None
    judged: tuple[verdicts.Verdict, ...]
    places: Mapping[RowColumn, Explanation]
    row_pages: Mapping[str, str]
    pair_ids: Mapping[str, str]

    def links(self) -> dict[RowColumn, str]:
        """Where the page on a place is, from the page of the table."""
        return {(row, column): f"{self.row_pages[row]}.html#{self.pair_ids[column]}" for row, column in self.places}


def write(output: Path, tables: Mapping[str, str], out: Path, say: Callable[[str], None] = say) -> list[Path]:
    """Write the pages of tables into a folder, and return their paths, the page to begin with first.

    Args:
        output: the store's folder.
        tables: the tables' folders in it, each with its name or YAML file ('' for one that ships with the suite).
        out: the folder of the pages, empty or with pages written before; of these, what is no longer shown is removed.
        say: called with a line for each run that is damaged, and so missing.

    Raises:
        UserError: nothing was ever planned under such a name, or the folder has something else in it.
    """
    if out.exists() and not (out.is_dir() and (_ours(out / "index.html") or not any(out.iterdir()))):
        raise UserError(f"--out {out} is no empty folder and has no pages of this suite; name a folder for them")
    files = pages(output, tables, say)
    for name, content in files.items():
        write_bytes(out / name, content)
    for page in sorted(out.rglob("*.html")):
        if str(page.relative_to(out)) not in files and _ours(page):
            page.unlink()
    return [out / name for name in files]


def _ours(page: Path) -> bool:
    return page.is_file() and MARK.encode() in read_bytes(page)[:500]


def pages(output: Path, tables: Mapping[str, str], say: Callable[[str], None] = say) -> dict[str, bytes]:
    """The files of :func:`write` by their paths in the folder."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FILES / "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"json": json.dumps, "signed": signed}
    environment.globals.update(suite=citations.suite(), mark=MARK, script=_only(".min.js"), style=_only(".min.css"))

    def page(template: str, **content: Any) -> bytes:
        return environment.get_template(template).render(**content).encode()

    pages_folders = slugs(tables)
    shown = [_shown(output, name, pages_folders[name], table, say) for name, table in tables.items()]
    files = {"index.html": page("index.html", root="", tables=shown, summary=verdicts.summary)}
    for one in shown:
        files |= _pages_of(one, page)
    files["methods.html"] = page("methods.html", root="", rows=_methods(shown), bibtex=_bibtex(shown))
    files |= {f"static/{file.name}": file.read_bytes() for file in sorted((FILES / "static").iterdir())}
    return files


def _only(ending: str) -> str:
    """The library's file of a kind; its name has its version."""
    (name,) = (file.name for file in (FILES / "static").iterdir() if file.name.endswith(ending))
    return name


def _shown(output: Path, table_folder: str, pages_folder: str, table: str, say: Callable[[str], None]) -> _Shown:
    planned, store = manifest.existing(output, table_folder), Store(output)
    collected = collect(planned, store, say)
    words = explain.asked(planned, table_folder, table)
    places = {  # the table's own collection has said already what is damaged
        (place.rows[0].key, place.columns[0].key): explain.of_place(place, table_folder, store, words, _silent)
        for place in _places(planned)
    }
    return _Shown(
        table_folder,
        pages_folder,
        planned,
        collected,
        collect_cost(planned, store, collected, say),
        verdicts.verdicts(collected),
        places,
        slugs([row.key for row in planned.rows], taken=("index",)),
        slugs([column.key for column in planned.columns]),
    )


def _silent(_: str) -> None:
    """Say nothing."""


def _places(planned: Manifest) -> list[Manifest]:
    """Each place of a table that has cells, as a manifest of its own."""
    rows = {row.key: row for row in planned.rows}
    columns = {column.key: column for column in planned.columns}
    cells: dict[RowColumn, list[Any]] = {}
    for cell in planned.cells:
        cells.setdefault(cell.place, []).append(cell)
    return [
        planned.model_copy(update={
            "rows": (rows[place[0]],), "columns": (columns[place[1]],), "cells": tuple(placed), "costs": (),
            "quoted": {},
        })
        for place, placed in cells.items()
    ]  # fmt: skip


def _pages_of(one: _Shown, page: Callable[..., bytes]) -> dict[str, bytes]:
    """The page of a table, and one for each of its rows."""
    layout, links = accuracy_table.layout(one.table), one.links()
    body, foot = accuracy_rows(one.table, layout, links)
    costs = cost_table.layout(one.cost) if one.cost else None
    files = {
        f"tables/{one.pages_folder}/index.html": page(
            "table.html", root="../../", shown=one, layout=layout, body=body, foot=foot, links=links,
            rule=verdicts.RULE, summary=verdicts.summary(one.judged), costs=costs, drawings=_drawings(one),
            cost_heads=_cost_heads(costs.heads) if costs else (),
            cost_rows=cost_rows(one.cost, costs, links) if one.cost and costs else (),
        )
    }  # fmt: skip
    for row in one.table.rows:
        by_column = {column: explanation for (key, column), explanation in one.places.items() if key == row.key}
        planned = next(other for other in one.planned.rows if other.key == row.key)
        files[f"tables/{one.pages_folder}/{one.row_pages[row.key]}.html"] = page(
            "row.html", root="../../", shown=one, row=row, method=planned.method, places=by_column,
            papers=_papers(row.cites), curves={key: _small_curves(place) for key, place in by_column.items()},
        )  # fmt: skip
    return files


def _small_curves(place: Explanation) -> dict[str, object]:
    return site_curves.small({seed.seed: seed.curve for seed in place.seeds})


def _drawings(one: _Shown) -> dict[str, str]:
    """The training curves of each column's rows."""
    by_column = {}
    for column in one.table.columns:
        methods = [
            site_curves.MethodCurves(row.title, tuple(seed.curve for seed in place.seeds), row.key == STUDENT)
            for row in one.table.rows
            if (place := one.places.get((row.key, column.key)))
        ]
        salt = f"{one.table_folder} {column.key}"
        if drawing := site_curves.drawing(methods, column.metric, salt):
            by_column[column.key] = drawing
    return by_column


def _cost_heads(heads: tuple[tuple[str, tuple[str, ...]], ...]) -> list[str]:
    """The two lines over the columns of a table of costs as one; an empty upper head is the one before it."""
    over, joined = "", []
    for upper, lower in zip(heads[0][1], heads[1][1], strict=True):
        over = upper.strip() if upper else over
        joined.append(f"{over} {lower}".strip())
    return joined


@dataclass(frozen=True)
class _Method:
    """A row's method in the list of methods, with the tables that show it."""

    row: PageRow
    method: str
    papers: tuple[citations.Paper, ...]
    tables: tuple[tuple[str, str], ...]


def _methods(shown: list[_Shown]) -> list[_Method]:
    methods: dict[tuple[str, str], _Method] = {}
    for one in shown:
        names = {row.key: row.method for row in one.planned.rows}
        for row in one.table.rows:
            place = (one.table_folder, f"tables/{one.pages_folder}/{one.row_pages[row.key]}.html")
            key = names[row.key], row.title
            method = methods.setdefault(key, _Method(PageRow(row.title, row.family), key[0], _papers(row.cites), ()))
            methods[key] = replace(method, tables=(*method.tables, place))
    return list(methods.values())


def _papers(keys: tuple[str, ...]) -> tuple[citations.Paper, ...]:
    return tuple(citations.paper(key) for key in keys)


def _bibtex(shown: list[_Shown]) -> str:
    """What all tables rest on."""
    cited = [citations.of_manifest(one.planned) for one in shown]
    every = {name: tuple(dict.fromkeys(key for one in cited for key in getattr(one, name)))
             for name in ("methods", "tasks", "networks")}  # fmt: skip
    return citations.bibtex(citations.Cited(**every))
