"""The pages of a store: every link leads somewhere, every number to its runs, nothing is asked for outside."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import pytest
from click.testing import CliRunner
from helpers import manifests, stores
from helpers.browser import CHROMIUM, browser

from benchmarks.cli.main import cli
from benchmarks.report import explain
from benchmarks.report.citations import paper
from benchmarks.report.site import pages as site
from benchmarks.report.site.curves import MethodCurves, drawing, line
from benchmarks.report.site.tables import Number, slugs
from benchmarks.report.table_layout import PrintedCell
from benchmarks.report.verdicts import RULE
from benchmarks.store import exchange, manifest
from benchmarks.store.manifest.shapes import Manifest
from benchmarks.store.runs import Store
from kd_methods.errors import UserError

TABLE1 = "table1-paper"
HOSTILE = "<script>alert('$x$')</script>"
ODD = "../../kd:t=2 <b>"
"""Key of a row of its own making."""


class Read(HTMLParser):
    """A page's links, ids, text, and the cells of numbers as (text, whether it is a link)."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.text = ""
        self.numbers: list[tuple[str, bool]] = []
        self._cell: list[tuple[str, bool]] | None = None
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attributes:
            if name in ("href", "src", "xlink:href", "action", "data", "srcset", "poster"):
                self.links.append((tag, value or ""))
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on"), "no script stands in a page"
        if tag == "td":
            self.numbers.append(("", False))
        if tag == "a" and self.numbers:
            self.numbers[-1] = self.numbers[-1][0], True

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self.numbers.append(("", False))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.numbers:
            self.numbers[-1] = self.numbers[-1][0] + data, self.numbers[-1][1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables of finished runs: one with names that mean harm, one with published values beside it."""
    output = tmp_path_factory.mktemp("store")
    cells = [stores.cell(method, seed) for method in ("kd", "dkd") for seed in (0, 1)]
    for one in (stores.TEACHER, *cells):
        stores.finish(output, one, 70.0 + one.seed)
    text = stores.shown(*cells).model_dump_json().replace('"KD"', f'"{HOSTILE}"')
    text = text.replace('"row":"kd"', f'"row":"{ODD}"').replace('"key":"kd"', f'"key":"{ODD}"')
    manifest.save(output, stores.TABLE_FOLDER, Manifest.model_validate_json(text))
    shown = manifests.paper()
    manifests.finish(output, shown, {"student": (69.0, 69.2), "kd": (70.7, 71.0)})
    manifest.save(output, TABLE1, shown)
    return output


@pytest.fixture(scope="module")
def pages(store: Path) -> dict[str, bytes]:
    return site.pages(store, {stores.TABLE_FOLDER: "", TABLE1: ""}, pytest.fail)


@pytest.fixture(scope="module")
def read(pages: dict[str, bytes]) -> dict[str, Read]:
    return {name: Read(content) for name, content in pages.items() if name.endswith(".html")}


def inner(read: dict[str, Read]) -> Iterator[tuple[str, str, str]]:
    """Page, file and mark of every link that is not a citation's."""
    for name, page in read.items():
        for tag, link in page.links:
            url = urlsplit(link)
            if url.scheme == "data" or (tag == "a" and link.startswith("https://arxiv.org/abs/")):
                continue
            assert not url.scheme and not url.netloc, (name, tag, link)
            target = PurePosixPath(name).parent / unquote(url.path) if url.path else PurePosixPath(name)
            folders: list[str] = []
            for step in target.parts:
                folders = folders[:-1] if step == ".." else [*folders, step]
            yield name, "/".join(folders), unquote(url.fragment)


def test_every_link_leads_to_a_page_and_a_mark_of_it(pages: dict[str, bytes], read: dict[str, Read]) -> None:
    links = list(inner(read))
    assert len(links) > 50
    for name, file, mark in links:
        assert file in pages, (name, file)
        assert not mark or mark in read[file].ids, (name, file, mark)
    reached = {file for _, file, _ in links}
    assert reached | {"index.html"} >= set(read), "each page can be reached"
    for name, page in read.items():
        assert len(set(page.ids)) == len(page.ids), name


def test_every_number_is_a_link_to_its_runs(read: dict[str, Read]) -> None:
    cells = [cell for cell in read[f"tables/{TABLE1}/index.html"].numbers if " ± " in cell[0]]
    assert [text[:12] for text, _ in cells][:2] == ["69.10 ± 0.14", "70.80 ± 0.14"]
    assert all(linked for text, linked in cells if not text.startswith("published"))
    links = [link for _, link in read[f"tables/{TABLE1}/index.html"].links]
    assert f"kd.html#{manifests.PAIR}" in links


def test_a_rows_page_says_what_explain_says(store: Path, read: dict[str, Read]) -> None:
    explanation = explain.explain(store, stores.TABLE_FOLDER, "dkd", "a-b", "", pytest.fail)
    page = " ".join(read[f"tables/{stores.TABLE_FOLDER}/dkd.html"].text.split())
    values = [*explanation.settings, *explanation.protocol]
    assert len(explanation.seeds) == 2 and values
    for seed in explanation.seeds:
        assert all(word in page for word in (seed.key, seed.sha256, f"runs/{seed.folder.name}", "abcdef123456"))
    assert all(value.name in page and value.source in page for value in values)
    lines = (*explanation.protocol_lines, *explanation.teacher, explanation.data)
    assert all(line in page for line in lines) and str(store) not in page


def test_verdicts_and_citations(read: dict[str, Read]) -> None:
    table, methods = read[f"tables/{TABLE1}/index.html"], read["methods.html"]
    assert RULE in table.text and "preliminary, n = 2" in table.text and "published cells reproduced" in table.text
    assert "@misc{hinton2015kd" in methods.text and "Distilling the Knowledge in a Neural Network" in methods.text
    assert ("a", "https://arxiv.org/abs/1503.02531") in methods.links


def test_names_stay_text(read: dict[str, Read]) -> None:
    for name, page in read.items():
        assert page.tags["script"] == 2 and page.tags["b"] == 0, name
    assert HOSTILE in read[f"tables/{stores.TABLE_FOLDER}/index.html"].text
    assert f"tables/{stores.TABLE_FOLDER}/kd-t=2-b.html" in read


def test_the_same_store_gives_the_same_bytes(store: Path, pages: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "site"
    done = CliRunner().invoke(cli, ["site", "--output", str(store), "--out", str(out)])
    assert done.exit_code == 0 and f"2 tables, {len(pages)} files" in done.output, (done.output, done.exception)
    written = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert written == pages
    done = CliRunner().invoke(cli, ["site", TABLE1, "--output", str(store), "--out", str(out)])
    assert done.exit_code == 0 and not list(out.glob(f"tables/{stores.TABLE_FOLDER}/*.html")), (
        "what is left out is gone"
    )
    assert (out / "tables" / TABLE1 / "kd.html").read_bytes() == pages[f"tables/{TABLE1}/kd.html"]


def test_several_stores_are_shown_as_one(tmp_path: Path) -> None:
    """A table of which two stores have one row each has the pages of a store that has both."""
    one, other, both = (tmp_path / name for name in ("one", "other", "both"))
    stores.table(one, "kd")
    stores.table(other, "dkd")
    stores.table(both, "kd", "dkd")
    out = tmp_path / "site"
    done = CliRunner().invoke(cli, ["site", "--store", str(one), "--store", str(other), "--out", str(out)])
    assert done.exit_code == 0, (done.output, done.exception)
    written = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert written == site.pages(both, {stores.TABLE_FOLDER: ""})
    assert not (one / "site").exists() and {path.name for path in other.iterdir()} == {
        path.name for path in one.iterdir()
    }
    failed = CliRunner().invoke(cli, ["site", "--store", str(one), "--store", str(tmp_path / "no"), "--out", str(out)])
    assert isinstance(failed.exception, UserError) and "no" in str(failed.exception)


def test_what_no_store_has_finished_is_shown_as_unfinished(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    stores.table(one, "kd")
    stores.table(other, "kd", "dkd")
    begun = stores.cell("dkd", 0)
    run = Store(other).run(begun)
    shutil.rmtree(run.path)
    with run.lock():
        Store(other).create(begun)
    run.set_metrics([{"epoch": 1, "metrics": {"top1": 50.0}}])
    run.set_status("interrupted", epoch=1, epochs=8)
    said = list[str]()
    with exchange.merged((one, other), said.append) as folder:
        written = site.pages(folder, {stores.TABLE_FOLDER: ""}, said.append)
    assert not said
    (page,) = (content.decode() for name, content in written.items() if name.endswith("/dkd.html"))
    assert "<td>interrupted" in page and "1 of 8 epochs" in page


def test_a_folder_with_other_things_is_left_alone(store: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UserError, match="name a folder for them"):
        site.write(store, {TABLE1: ""}, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]


def test_names_of_files_and_marks() -> None:
    names = slugs(["kd", "KD", "crd+kd@ls", "kd:t=2", "kd t=2", "../..", "βé", "index"], taken=("index",))
    assert list(names.values()) == ["kd", "KD-2", "crd+kd@ls", "kd-t=2", "kd-t=2-2", "x", "x-2", "index-2"]


def test_what_sorts_a_number() -> None:
    value, published = PrintedCell("70.12", "0.30"), PrintedCell("71.00")
    assert Number(value, published).order == "70.12" and Number(PrintedCell(), published).order == "71.00"
    assert Number(PrintedCell(word="--"), published).order == "", "no value of others stands for our own"
    assert Number(PrintedCell("1.80M")).order == "1800000" and Number(PrintedCell("102876")).order == "102876"


def test_a_paper_in_a_line_of_words() -> None:
    assert paper("hinton2015kd").words == "Hinton et al., Distilling the Knowledge in a Neural Network, 2015"
    assert paper("none").words == "none" and not paper("none").link


def test_drawings() -> None:
    methods = [MethodCurves(f"m{i}", ((1.0, 2.0 + i), (1.5, 3.0 + i)), i == 0) for i in range(9)]
    drawn = drawing(methods, "top1 $", "a")
    assert drawn == drawing(methods, "top1 $", "a") != drawing(methods, "top1 $", "b")
    named = [method.title for method in methods if f">{method.title}<" in drawn]
    assert named == ["m0", "m3", "m4", "m5", "m6", "m7", "m8"], "the reference and the six best"
    assert "top1 $" in drawn and "http" not in drawn and "currentColor" in drawn
    assert drawing([MethodCurves("one epoch", ((1.0,),))], "top1", "a") == ""
    assert line([1.0, 3.0, 2.0], 3, (1.0, 3.0), (10, 4)) == "0.0,4.0 5.0,0.0 10.0,2.0"
    assert line([1.0, 3.0], 3, (1.0, 3.0), (10, 4)) == "0.0,4.0 5.0,0.0", "a run that ended early ends early"
    assert line([2.0], 1, (2.0, 2.0), (10, 4)) == "0.0,4.0"
    assert len(line([0.0] * 999, 999, (0.0, 1.0), (9, 9)).split()) == 120


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_in_a_browser_by_keyboard(store: Path, tmp_path: Path) -> None:
    site.write(store, {stores.TABLE_FOLDER: "", TABLE1: ""}, tmp_path / "site")
    rows = "[...document.querySelectorAll('table.sortable')[0].tBodies[0].rows].map(r => r.cells[0].innerText)"
    with browser(tmp_path / "profile") as page:
        page("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=False)
        page.open(tmp_path / "site" / "tables" / TABLE1 / "index.html")
        assert page.value(rows) == ["Student", "KD", "DKD"]
        for _ in range(30):
            page.press("Tab")
            if page.value("document.activeElement.closest('th')?.cellIndex") == 2:
                break
        page.press("Enter")
        assert page.after("document.querySelectorAll('th')[2].ariaSort", "ascending") == "ascending"
        assert page.value(rows) == ["DKD", "Student", "KD"], "what has no number is least"
        page.press("Enter")
        assert page.after(rows, ["KD", "Student", "DKD"]) == ["KD", "Student", "DKD"]
        page.value("document.querySelector('input[type=search]').focus()")
        page.type("student")
        assert page.after(rows, ["Student"]) == ["Student"]
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.value(wide) == 0, "a small screen scrolls the table, not the page"
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.value(ground)
        page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert light == "rgb(255, 255, 255)" != page.value(ground)
        page.open(tmp_path / "site" / "tables" / stores.TABLE_FOLDER / "index.html")
        assert {address.partition(":")[0] for address in page.requests} <= {"file", "data"}
