"""Every .tex compiles without a warning in the classes that papers are written in, at a size that can be read."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import report
from benchmarks.common.network_names import network_title
from benchmarks.report import (
    PAPER,
    Column,
    CostEntry,
    CostRow,
    CostTable,
    Page,
    Published,
    SeedResult,
    Table,
    TableEntry,
)
from benchmarks.report import TableRow as Row
from benchmarks.report.citations import bibliography
from benchmarks.report.formats.latex_text import escape, flowing

CLASSES = {
    "ieee": r"\documentclass[conference]{IEEEtran}",
    "times": r"\documentclass[10pt,twocolumn,letterpaper]{article}\usepackage{times}",
}
NETWORKS = (
    "resnet56-resnet20", "resnet110-resnet20", "resnet110-resnet32", "resnet32x4-resnet8x4", "wrn_40_2-wrn_16_2",
    "wrn_40_2-wrn_40_1", "vgg13-vgg8", "resnet32x4-ShuffleV1", "resnet32x4-ShuffleV2", "wrn_40_2-ShuffleV1",
    "vgg13-MobileNetV2", "ResNet50-MobileNetV2", "ResNet50-vgg8",
)  # fmt: skip


STATES = {5: "diverged", 11: "missing", 17: "failed"}
REASONS = ("another teacher", "our protocol deviates from the published one", "other settings than published")
FAMILIES = ("logit", "feature", "relation", "blockwise")
HELD = {"weights": 2**20, "gradients": 2**20, "optimiser": 2**20, "teacher": 3 * 2**20, "activations": 400 * 2**20}


def column(key: str, accuracy: float) -> Column:
    teacher, student = key.split("-")
    titles = (network_title(teacher), network_title(student))
    published = Published(accuracy + 0.2, None, "paper A", "last")
    return Column(key, teacher, student, accuracy, "entry x", published, titles=titles)


def entry(row: int, place: int, seeds: int) -> TableEntry:
    """A cell; some lack seeds, and what is published for them is of every kind."""
    value, state, kind = 60 + (row * 7 + place * 3) % 17 + 0.01 * row, (row * 13 + place) % 23, (row + place) % 6
    runs = tuple(
        SeedResult(seed, STATES[state])  # type: ignore[arg-type]
        if seed and state in STATES
        else SeedResult(seed, "done", value + 0.4 * seed, value + 0.5 * seed)
        for seed in range(seeds)
    )
    rule, reason = ("last", "best", "unknown")[kind % 3], REASONS[kind - 3] if kind > 2 else ""
    published = Published(value + 0.3, 0.2, f"paper {row % 3}", rule, not reason, reason)  # type: ignore[arg-type]
    return TableEntry(runs, published if kind != 4 else None)


def fabricated(rows: int = 40, pairs: int = 13, seeds: int = 3) -> tuple[Table, CostTable]:
    """A table of every kind of cell, and what its rows cost."""
    keys = sorted(bibliography())
    columns = tuple(column(key, 70.0 + i) for i, key in enumerate(NETWORKS[:pairs]))
    made = tuple(
        Row(
            key={0: "student", 1: "kd"}.get(row, f"m{row}"),
            title=f"Method-{row}" + " (four layers)" * (row % 9 == 4) if row else "Student",
            family=FAMILIES[row * 4 // rows],
            entries={one.key: entry(row, i, seeds) for i, one in enumerate(columns)},
            our_choice=("alpha = 1",) * (row % 8 == 3),
            settings_note=f"alpha {row}; beta_hat 0.{row}" * (row % 5 == 0),
            cites=(keys[row],) if row else (),
        )
        for row in range(rows)
    )
    quoted = Row("q", "Quoted", "quoted", {columns[0].key: TableEntry((), Published(71.1, None, "p", "last"))})
    table = Table(
        name="table1",
        title="CIFAR-100, teacher and student of the same family",
        metric="Top-1 accuracy (%)",
        columns=columns,
        rows=made,
        protocol_lines=("cifar100-short v1 on cifar100: 5 epochs, batch 64; SGD, momentum 0.9",),
        deviations=("5 epochs instead of 240",),
        provenance=("run 2026-11-21 at commit a4050ff553d6",),
        protocol="cifar100-short",
        digest="0123456789abcdef" * 4,
        quoted=(quoted,),
    )
    steps = [0.04 + 0.001 * i for i in range(8)]
    costs = tuple(
        CostRow(row.key, row.title, row.family, {
            one.key: CostEntry(1500.0 + 10 * i, 406 * 2**20, "CUDA allocated", 100 * i, 0, 64, "H200", 8,
                               step_seconds=steps, memory_split=HELD)
            for one in columns
        })
        for i, row in enumerate(made)
    )  # fmt: skip
    return table, CostTable("table1", table.title, columns, costs, table.provenance)


HOSTILE = (
    r"\input{/etc/passwd} & 100% #1 $x^2_3$ ~{}",
    "模型 Ünïcødé ß ½ “q” ±†",
    "x" * 300,
    r"*[2ex] \\ \end{tabular}",
    "_^%&#$\\{}~" * 9,
)


def hostile() -> Table:
    """Names that LaTeX would take for commands, or that it cannot break into lines."""
    table, _ = fabricated(6, 2)
    rows = tuple(
        replace(row, title=name, family=name, our_choice=(name,), settings_note=name)
        for row, name in zip(table.rows[1:], HOSTILE, strict=True)
    )
    columns = tuple(
        replace(one, teacher_note=name, titles=(name, name)) for one, name in zip(table.columns, HOSTILE, strict=False)
    )
    return replace(
        table, name="odd_1", title=" ".join(HOSTILE), metric=HOSTILE[0], columns=columns, rows=rows,
        protocol_lines=HOSTILE, deviations=HOSTILE, notes=HOSTILE, provenance=HOSTILE, protocol=HOSTILE[0],
    )  # fmt: skip


def written(folder: Path, table: Table, cost: CostTable | None = None, page: Page = PAPER) -> list[str]:
    files = report.write(table, folder, table.name, page, cost)
    files += report.write_cost(cost, folder, f"{table.name}-cost") if cost else []
    return [file.stem for file in files if file.suffix == ".tex"]


def compiled(folder: Path, kind: str, stems: list[str]) -> str:
    """The log of a paper that reads the files, once LaTeX knows its references."""
    lines = [CLASSES[kind], r"\usepackage{booktabs,siunitx,graphicx,colortbl}", r"\begin{document}", "Text."]
    lines += [rf"\input{{{stem}}}" for stem in stems]
    cited = any(r"\cite{" in (folder / f"{stem}.tex").read_text() for stem in stems)
    if cited:  # names of authors leave gaps in a narrow column
        entries = {
            entry for file in folder.glob("*.bib") for entry in re.findall(r"^@.*?^\}", file.read_text(), re.M | re.S)
        }
        (folder / "paper.bib").write_text("\n".join(sorted(entries)))
        lines += [r"\hbadness=10000 \bibliographystyle{plain}\bibliography{paper}"]
    (folder / f"{kind}.tex").write_text("\n".join([*lines, r"\end{document}"]))
    latex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{kind}.tex"]
    for command in (latex, *([["bibtex", kind]] if cited else []), latex, latex):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
        assert done.returncode == 0, done.stdout[-3000:]
    return (folder / f"{kind}.log").read_text(errors="replace")


def complaints(log: str) -> list[str]:
    return re.findall(r"^.*(?:Warning:|Overfull|Underfull \\hbox|Missing character).*$", log, re.MULTILINE)


def unavoidable(complaint: str) -> bool:
    """Of names that nothing can break into lines, and of a dollar in the small capitals of IEEE's captions."""
    return complaint.startswith("Underfull") or "TS1/ptm/m/sc" in complaint or "Some font shapes" in complaint


needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
each_class = pytest.mark.parametrize("kind", CLASSES)
SMALL: Mapping[str, Page] = {
    "marked": Page(highlight="m3", costs=True), "plain": Page(published="none"), "whole": Page(style="full"),
}  # fmt: skip


@pytest.mark.slow
@needs_latex
@each_class
def test_a_large_table_compiles_without_a_warning(tmp_path: Path, kind: str) -> None:
    assert complaints(compiled(tmp_path, kind, written(tmp_path, *fabricated()))) == []


@pytest.mark.slow
@needs_latex
@each_class
def test_small_and_hostile_tables_compile_without_a_warning(tmp_path: Path, kind: str) -> None:
    table, cost = fabricated(9, 3)
    stems = written(tmp_path, hostile())
    for name, page in SMALL.items():
        stems += written(tmp_path, replace(table, name=name), replace(cost, name=name), page)
    assert [line for line in complaints(compiled(tmp_path, kind, stems)) if not unavoidable(line)] == []


@settings(max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=40))
def test_no_text_reaches_tex_as_a_command(text: str) -> None:
    for written_text in (escape(text), flowing(text)):
        assert written_text.isascii() and written_text.isprintable()
        plain = re.sub(
            r"\\(?:[%&#$_{}]|[`'^~=.\"uHvcr]\{[A-Za-z]\}|[a-zA-Z]+(?:\{(?:0pt)?\})?|S\{\})", "", written_text
        )
        assert not set(plain) & set("\\%&#_~") and plain.count("{") == plain.count("}")
        assert set(re.findall(r"\\([a-zA-Z]+)", written_text)) <= COMMANDS


COMMANDS = {
    *("textbackslash", "textasciitilde", "textasciicircum", "pm", "dagger", "ddagger", "ast", "times", "to", "leq"),
    *("geq", "approx", "ldots", "cdot", "circ", "Delta", "alpha", "beta", "gamma", "delta", "epsilon", "lambda", "mu"),
    *("rho", "sigma", "tau", "uparrow", "downarrow", "S", "ss", "ae", "AE", "oe", "OE", "o", "O", "l", "L", "i"),
    *("hspace", "u", "H", "v", "c", "r"),
}  # fmt: skip


def test_seven_pairs_stand_side_by_side_and_more_go_on_below() -> None:
    def pairs(page: Page) -> list[int]:
        text = report.render(fabricated()[0], page)[".tex"]
        return [line.count("ResNet") + line.count("WRN") + line.count("VGG") for line in text.splitlines()
                if line.startswith("Teacher & \\multicolumn")]  # fmt: skip

    assert pairs(Page(published="none")) == [7, 6] and pairs(Page()) == [4, 4, 4, 1]
    text = report.render(fabricated()[0])[".tex"]
    assert "resizebox{\\linewidth}" in text and r"\fontsize{7}{8}" in text and r"\tiny" not in text


def test_what_a_paper_prints_is_short_and_said_once() -> None:
    table, cost = fabricated(9, 3)
    texts = report.render(table, Page(highlight="m3", costs=True), cost)
    tex = texts[".tex"]
    caption = next(line for line in tex.splitlines() if line.startswith(r"\caption"))
    assert (
        "mean $\\pm$ std, n = 3" in caption
        and r"protocol cifar100-\hspace{0pt}short; not the paper's protocol" in caption
    )
    assert len(caption) < 200, "two lines"
    assert r"\rowcolor[gray]{.9}Method-3" in tex and tex.count(r"\rowcolor") == 1
    assert "ResNet-56" in tex and "resnet56" not in tex
    keys = set(re.findall(r"\\cite\{([^}]+)\}", tex))
    assert keys == set(re.findall(r"^@\w+\{([^,]+),", texts[".bib"], re.MULTILINE)) and len(keys) == 8
    assert "images/s" in tex and "MiB" in tex
    for hidden in ("momentum 0.9", "beta", "a4050ff553d6", "0123456789"):
        assert hidden not in tex and hidden in texts["-appendix.tex"] and hidden in texts[".md"], hidden


@pytest.mark.parametrize("style", ["paper", "full"])
def test_nothing_is_said_twice_in_a_file(style: Literal["paper", "full"]) -> None:
    """No sentence of the appendix stands in the table before it, or twice."""
    texts = report.render(fabricated(9, 3)[0], Page(style=style))
    for name in {".tex", "-appendix.tex", ".md"} & texts.keys():
        said = re.findall(r"[A-Z][^.\n&\[\]]{25,}\.", texts[name].partition(r"\kdbegin" + "\n")[2] or texts[name])
        assert len(said) > 3 and [text for text in said if said.count(text) > 1] == [], name
    appendix = texts.get("-appendix.tex", "")
    assert "second best mean" not in appendix and "by the same epoch rule" in texts.get("-appendix.tex", texts[".tex"])


def test_a_page_with_its_appendix_leaves_no_earlier_one(tmp_path: Path) -> None:
    """Both read in one document would define labels twice."""
    table = fabricated(2, 2)[0]
    for style in ("paper", "full"):
        written = report.write(table, tmp_path, "a.b", Page(style=style))
        assert sorted(tmp_path.iterdir()) == sorted(written)


def test_daggers_tell_their_reasons_apart() -> None:
    texts = report.render(fabricated(9, 3)[0])
    for text in texts[".tex"], texts["-appendix.tex"]:
        assert r"$^{\dagger{}a}$" in text and r"$^{\dagger{}b}$" in text
    assert "†a: not comparable, hence no gap: another teacher." in texts[".md"]
