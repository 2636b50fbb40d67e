# ruff: noqa: RUF001
"""LaTeX of a layout for a paper: booktabs and siunitx at 7 pt, split into blocks and floats that fit a page.

A file compiles alone as well as by \\input into a class of one or two columns. What is too wide for a page goes on in
the next block, what is too long in the next float; only where a font is wider than Times is a block shrunk a little.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..table_layout import MISSING, Line, PrintedCell, TableLayout, cut
from .latex_text import aside, escape, flowing, label, marks, pieces

SIZE = 7.0
"""Of the type in tables, in points."""

NARROW, WIDE = 225.0, 460.0
"""Least width of a column and of the page in the usual classes, in points: what has to fit there."""

LINES = 54.0
"""Lines of a float: what the shortest of the usual pages holds below a caption and above notes."""

GROUPS = 9
"""Column groups that stand side by side at most: about seven pairs, an average, a difference."""

MANY = 4
"""Floats from which on LaTeX needs leave to keep so many without a text between them."""

_SEPARATION = 5.0
"""Between two columns, in points."""

_RULE = 0.45
"""Height of a rule with its distances, in lines."""

_LABEL = 118.0
"""Width from which on the label of a row is broken into lines, in points."""

HEADING = 60
"""Characters of a family's name, which cannot be broken into lines."""

_HEAD = 15
"""Characters from which on a head is broken into lines."""

_SHORT_CAPTION = 85
"""Characters of a caption that are two lines of a narrow column."""

_NUMBER = re.compile(r"(?P<sign>[+-]?)(?P<whole>\d+)(?:\.(?P<decimals>\d+))?")

_FRAME = r"""% Compiles alone (pdflatex) and by \input; then the document needs
%   \usepackage{@PACKAGES@}% siunitx in version 3
\makeatletter
% In a document \documentclass no longer has its meaning of the first line: LaTeX turns it into an error message.
\let\kdalone=y%
\ifx\documentclass\@twoclasseserror \let\kdalone=n\fi
\ifx\documentclass\@notprerr \let\kdalone=n\fi
\if y\kdalone
  \def\kdbegin{%
    \documentclass[10pt]{article}
    \usepackage{@PACKAGES@}
    \usepackage[a4paper,margin=17mm]{geometry}
    \pagestyle{empty}
    \begin{document}
    % Without a bibliography yet, only what bibtex needs to make it.
    \IfFileExists{\jobname.bbl}{}{\let\cite\kdcited}}%
  \def\kdcited#1{\unskip\immediate\write\@auxout{\string\citation{#1}}}%
  \def\kdend{@BIBLIOGRAPHY@\end{document}}%
\else
  \def\kdbegin{\@ifpackageloaded{siunitx}{}{%
    \PackageError{kdbench}{This table needs the packages @PACKAGES@}{}}}%
  \let\kdend\relax
\fi
\makeatother
\kdbegin
@BODY@
\kdend
"""

_SET_UP = r"""\begingroup
\ifdefined\kdbox\else\newsavebox\kdbox\fi
\def\kdfit{\ifdim\wd\kdbox>\linewidth\resizebox{\linewidth}{!}{\usebox\kdbox}\else\usebox\kdbox\fi}%
\fontsize{7}{8}\selectfont
\sisetup{separate-uncertainty,retain-zero-uncertainty,retain-explicit-plus,detect-weight,mode=text,%
  table-align-text-before=false,table-align-text-after=false}%
\setlength{\tabcolsep}{2.5pt}\renewcommand{\arraystretch}{1}%
\setlength{\aboverulesep}{1pt}\setlength{\belowrulesep}{1.5pt}%"""


def document(body: str, bibliography: str = "", packages: Sequence[str] = ()) -> str:
    """A file that compiles alone and by \\input. ``bibliography`` is the name of the .bib file beside it."""
    values = {
        "PACKAGES": ",".join(["booktabs", "siunitx", "graphicx", *packages]),
        "BIBLIOGRAPHY": rf"\bibliographystyle{{plain}}\bibliography{{{bibliography}}}" if bibliography else "",
        "BODY": body,
    }
    # One pass, so that a name in a title is not taken for a place to fill.
    return re.sub("@(" + "|".join(values) + ")@", lambda match: values[match[1]], _FRAME)


def render(layout: TableLayout, bibliography: str = "") -> str:
    """A layout as a document of its own."""
    return document(body(layout), bibliography, packages(layout))


def packages(layout: TableLayout) -> list[str]:
    """What a layout needs beside booktabs and siunitx."""
    return ["colortbl"] if any(line.highlight for block in layout.blocks for line in block) else []


def body(layout: TableLayout) -> str:
    """The floats of a layout, in order."""
    labels = _Labels.of(layout)
    head_lines = sum(max(len(pieces(text, _HEAD)) for text in texts) for _, texts in layout.heads)
    columns = [_Column.of([line.cells[i] for line in _rows(layout)]) for i in range(layout.width)]
    spans = _column_blocks(layout, columns, labels.width)
    floats: list[list[str]] = [[]]
    used = 0.0
    for start, end in spans:
        for chunk in _chunks(_shown(layout.blocks, start, end), LINES - head_lines - 2 * _RULE, labels):
            lines: float = head_lines + sum(labels.lines(line) for block in chunk for line in block)
            lines += _RULE * (len(chunk) + 2)
            if used and used + lines > LINES:
                floats.append([])
                used = 0.0
            floats[-1].append(_tabular(layout, chunk, columns, (start, end), labels))
            used += lines
    width = max(_width_of(columns, layout.heads, span, labels.width) for span in spans)
    caption = "".join(sentence.text for sentence in layout.caption)
    narrow = width <= NARROW and len(layout.title + caption) <= _SHORT_CAPTION and len(floats) == 1
    environment = "table" if narrow else "table*"
    many = [r"\ifnum\maxdeadcycles<1000 \maxdeadcycles=1000 \fi"] if len(floats) > MANY else []
    return "\n".join([*many, *(_float(layout, environment, tabulars, i) for i, tabulars in enumerate(floats))])


def _rows(layout: TableLayout) -> list[Line]:
    return [line for block in layout.blocks for line in block if line.cells]


def _float(layout: TableLayout, environment: str, tabulars: Sequence[str], number: int) -> str:
    name = label(layout.name)
    if number == 0:
        sentences = [
            rf"\textbf{{{flowing(sentence.text)}}}" if sentence.strong else flowing(sentence.text)
            for sentence in layout.caption
        ]
        title = f"{flowing(layout.title.rstrip('.'))}." if layout.title else ""
        caption = rf"\caption{{{' '.join(text for text in [title, *sentences] if text)}}}" + f"\n\\label{{tab:{name}}}"
    else:
        caption = rf"{{\small Table~\ref{{tab:{name}}}, continued.\par}}\vspace{{4pt}}"
    notes = "" if number else _notes(layout.notes)
    return "\n".join(
        [
            rf"\begin{{{environment}}}[tbp]",
            r"\centering",
            caption,
            _SET_UP,
            "\\par\\vspace{5pt}\n".join(tabulars),
            *([r"\par\vspace{3pt}", rf"\parbox{{\linewidth}}{{\raggedright {notes}}}"] if notes else []),
            r"\par\endgroup",
            rf"\end{{{environment}}}",
        ]
    )


def _notes(notes: Sequence[tuple[str, str]]) -> str:
    """One paragraph."""
    return "\n".join(f"{_note_label(name)}{flowing(text)}" for name, text in notes)


def _note_label(name: str) -> str:
    if not name:
        return ""
    if name == MISSING:
        return "--: "
    if len(name) <= 2:
        return f"$^{{{marks(name)}}}$\\," if marks(name) else f"{escape(name)}: "
    return rf"\textit{{{flowing(name)}:}} "


# Columns and lines


@dataclass(frozen=True)
class _Column:
    """A column's declaration and its width in points; ``numbers`` are aligned at their points."""

    declaration: str
    width: float
    numbers: bool

    @classmethod
    def of(cls, cells: Sequence[PrintedCell]) -> _Column:
        valued = [cell for cell in cells if cell.value]
        matches = [_NUMBER.fullmatch(cell.value) for cell in valued]
        words = max((width(cell.word) for cell in cells), default=0.0)
        post = max((_post(cell) for cell in cells), key=_post_width, default="")
        if not valued or not all(matches):
            across = max([words, *(width(cell.value) for cell in valued)]) + _post_width(post)
            return cls("r" if valued else "c", across, False)
        numbers = [match for match in matches if match]
        whole = max(len(match["whole"]) for match in numbers)
        decimals = max(len(match["decimals"] or "") for match in numbers)
        sign = "+" if any(match["sign"] for match in numbers) else ""
        stds = [cell.std for cell in valued if cell.std]
        digits = max((len(std.replace(".", "")) for std in stds), default=0)
        uncertainty = f"({digits})" if digits else ""
        room = f",table-space-text-post={{{post}\\,}}" if post else ""
        point = "." if decimals else ""
        across = width(sign + "0" * (whole + decimals) + point) + _post_width(post)
        across += width("±  " + "0" * digits + point) if digits else 0.0
        return cls(f"S[table-format={sign}{whole}.{decimals}{uncertainty}{room}]", max(across, words), True)


@dataclass(frozen=True)
class _Labels:
    """How the rows' labels stand: on a line each, or, where one is long, in a column of fixed width."""

    declaration: str
    width: float

    @classmethod
    def of(cls, layout: TableLayout) -> _Labels:
        widest = max((_label_width(line) for line in _rows(layout)), default=0.0)
        widest = max([widest, *(width(name) for name, _ in layout.heads)])
        if widest <= _LABEL:
            return cls("l", widest)
        return cls(rf">{{\raggedright\arraybackslash}}p{{{_LABEL:.0f}pt}}", _LABEL)

    def lines(self, line: Line) -> int:
        return 1 if self.declaration == "l" or not line.cells else max(1, round(_label_width(line) / self.width + 0.7))


def _label_width(line: Line) -> float:
    cites = width("[" + ", ".join(["00"] * len(line.cites)) + "]") + 3 if line.cites else 0.0
    return width(line.label) + cites + width(line.mark)


_EM = {
    char: em
    for chars, em in (
        (" ,.|/:;ijlt", 0.28), ("!'()-I[]`fr", 0.34), ("Js", 0.39), ("?acez", 0.45), ("FPS+<=>±×−≈", 0.58),
        ("ELTZ", 0.61), ("BCR", 0.67), ("ADGHKNOQUVXYwΔ", 0.73), ("&m%", 0.84), ("MW@—→", 1.0),
    )
    for char in chars
}  # fmt: skip
"""Widths of Times, in which most venues are set; other letters and digits have 0.5."""


def width(text: str) -> float:
    """An upper estimate of a text's width at 7 pt in Times."""
    return SIZE * sum(_EM.get(char, 0.5 if char.isascii() else 0.9) for char in text)


def _column_blocks(layout: TableLayout, columns: Sequence[_Column], labels: float) -> list[tuple[int, int]]:
    """(start, end) of the columns that stand side by side, of about equal width.

    What has a common head stays together.
    """
    starts = [i for i, text in enumerate(layout.heads[0][1]) if text or i == 0]
    groups = list(zip(starts, [*starts[1:], len(columns)], strict=True))

    def filled(limit: float) -> list[tuple[int, int]]:
        blocks: list[tuple[int, int]] = []
        count = 0
        for start, end in groups:
            joined = (blocks[-1][0], end) if blocks else (start, end)
            if blocks and count < GROUPS and _width_of(columns, layout.heads, joined, labels) <= limit:
                blocks[-1] = joined
                count += 1
            else:
                blocks.append((start, end))
                count = 1
        return blocks

    widest = filled(WIDE)
    return next(blocks for share in range(10, 21) if len(blocks := filled(WIDE * share / 20)) <= len(widest))


Heads = Sequence[tuple[str, tuple[str, ...]]]


def _width_of(columns: Sequence[_Column], heads: Heads, block: tuple[int, int], labels: float) -> float:
    start, end = block
    widths = [column.width for column in columns[start:end]]
    for _, texts in heads:
        for i, span, text in _spans(texts, block):
            missing = max(map(width, pieces(text, _HEAD))) - sum(widths[i : i + span]) - _SEPARATION * (span - 1)
            widths[i + span - 1] += max(0.0, missing)
    return labels + sum(widths) + _SEPARATION * len(widths)


def _spans(texts: Sequence[str], block: tuple[int, int]) -> list[tuple[int, int, str]]:
    """(place within the block, columns, text) of a line of heads."""
    start, end = block
    places = [i for i in range(start, end) if texts[i] or i == start]
    return [(i - start, after - i, texts[i]) for i, after in zip(places, [*places[1:], end], strict=True)]


def _chunks(blocks: Sequence[tuple[Line, ...]], limit: float, labels: _Labels) -> list[list[tuple[Line, ...]]]:
    """The blocks in chunks of at most ``limit`` lines.

    A block that fits a chunk of its own is only cut where the chunk before it would stay half empty; a heading stands
    with its first row.
    """
    chunks: list[list[tuple[Line, ...]]] = [[]]
    used = 0.0
    for block in blocks:
        rest = block
        while rest:
            sizes = [labels.lines(line) for line in rest]
            whole = _RULE + sum(sizes) <= limit
            taken, room = 0, limit - used - _RULE
            while taken < len(rest) and sizes[taken] <= room:
                room -= sizes[taken]
                taken += 1
            if taken < len(rest) and used:
                while taken and not rest[taken - 1].cells:
                    taken -= 1
                if not taken or (whole and used > limit / 2):
                    chunks.append([])
                    used = 0.0
                    continue
            taken = max(taken, 1)
            chunks[-1].append(rest[:taken])
            used += _RULE + sum(sizes[:taken])
            rest = rest[taken:]
    return [chunk for chunk in chunks if chunk]


def _shown(blocks: Sequence[tuple[Line, ...]], start: int, end: int) -> list[tuple[Line, ...]]:
    """The lines that have something to show in these columns, and the headings of such lines."""
    shown = []
    for block in blocks:
        filled = [
            line for line in block if not line.cells or any(cell != PrintedCell() for cell in line.cells[start:end])
        ]
        lines = tuple(
            line for i, line in enumerate(filled) if line.cells or any(after.cells for after in filled[i + 1 :])
        )
        shown += [lines] if lines else []
    return shown


def _tabular(
    layout: TableLayout,
    chunk: Sequence[tuple[Line, ...]],
    columns: Sequence[_Column],
    block: tuple[int, int],
    labels: _Labels,
) -> str:
    start, end = block
    here = columns[start:end]
    out = [
        rf"\begin{{tabular}}{{@{{}}{labels.declaration}{''.join(column.declaration for column in here)}@{{}}}}",
        r"\toprule",
    ]
    for name, texts in layout.heads:
        spans = _spans(texts, block)
        out.append(" & ".join([escape(name), *(_head(text, span) for _, span, text in spans)]) + r" \\")
        if any(span > 1 for _, span, _ in spans) and (name, texts) != layout.heads[-1]:
            out += [rf"\cmidrule(lr){{{i + 2}-{i + span + 1}}}" for i, span, text in spans if span > 1 and text.strip()]
    for lines in chunk:
        out.append(r"\midrule")
        out += [_line(line, here, block) for line in lines]
    return "\n".join([r"\sbox\kdbox{%", *_tidy(out), r"\bottomrule", r"\end{tabular}}%", r"\kdfit"])


def _tidy(lines: list[str]) -> list[str]:
    """Rules under heads of one and the same line only once: the lowest."""
    return [line for i, line in enumerate(lines) if not (line.startswith(r"\cmidrule") and line in lines[i + 1 :])]


def _head(text: str, span: int) -> str:
    stacked = [escape(piece) for piece in pieces(text, _HEAD)]
    content = stacked[0]
    if len(stacked) > 1:
        content = r"\begin{tabular}[b]{@{}c@{}}" + r"\\".join(stacked) + r"\end{tabular}"
    return rf"\multicolumn{{{span}}}{{c}}{{{content}}}"


def _line(line: Line, columns: Sequence[_Column], block: tuple[int, int]) -> str:
    start, end = block
    if not line.cells:
        return rf"\multicolumn{{{len(columns) + 1}}}{{@{{}}l}}{{\itshape {escape(cut(line.label, HEADING))}}} \\"
    mark = f"$^{{{marks(line.mark)}}}$" if line.mark else ""
    cites = rf"~\cite{{{','.join(line.cites)}}}" if line.cites else ""
    name = flowing(line.label) + mark + cites
    cells = [_cell(cell, column) for cell, column in zip(line.cells[start:end], columns, strict=True)]
    shade = r"\rowcolor[gray]{.9}" if line.highlight else ""
    return shade + " & ".join([name, *cells]) + r" \\"


def _cell(cell: PrintedCell, column: _Column) -> str:
    if not cell.value:
        text = cell.word if cell.word in ("", MISSING) else rf"\textit{{{escape(cell.word)}}}"
        return f"{{{text}}}" if text and column.numbers else text
    post = _post(cell)
    if not column.numbers:
        value = escape(cell.value)
        return {1: rf"\textbf{{{value}}}", 2: rf"\underline{{{value}}}"}.get(cell.rank, value) + post
    before = {1: r"\bfseries ", 2: rf"{{\rlap{{\underline{{\hphantom{{{cell.value}}}}}}}}}"}.get(cell.rank, "")
    std = f"({cell.std.replace('.', '').lstrip('0') or '0'})" if cell.std else ""
    return before + cell.value + std + (f"{{{post}}}" if post else "")


def _post(cell: PrintedCell) -> str:
    """What stands behind a value: marks and a seed count above the line, an aside on it."""
    above = marks(cell.marks) + (r"\," if cell.marks and cell.seeds else "") + marks(cell.seeds.removeprefix("n="))
    return (f"$^{{{above}}}$" if above else "") + (rf"\,({aside(cell.aside)})" if cell.aside else "")


def _post_width(post: str) -> float:
    plain = re.sub(r"[${}^]", "", re.sub(r"\\[a-z]+(\{\})?", "M", post.replace(r"\,", " ")))
    small = "(" not in plain
    return width(plain) * (0.8 if small else 1.0) + (2.0 if post else 0.0)
