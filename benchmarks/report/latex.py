# ruff: noqa: RUF001
"""LaTeX of a layout: booktabs, and one file that compiles alone as well as by \\input."""

from __future__ import annotations

import re
import unicodedata

from .table_layout import MISSING, Line, PrintedCell, TableLayout

# A starred or bracketed first cell would be read as an argument of the line break before it; a double hyphen is a dash.
_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$", "[": "{[}", "]": "{]}",
    "*": "{*}", '"': "''", "±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$", "∗": r"$\ast$", "×": r"$\times$",
    "→": r"$\to$", "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$", "–": "--", "—": "---", "−": "$-$",
    "…": r"\ldots{}", "·": r"$\cdot$", "°": r"$^\circ$", "’": "'", "‘": "`", "“": "``", "”": "''",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\epsilon$", "λ": r"$\lambda$",
    "μ": r"$\mu$", "µ": r"$\mu$", "ρ": r"$\rho$", "σ": r"$\sigma$", "τ": r"$\tau$",
}  # fmt: skip

_MATH = {"†": r"\dagger{}", "∗": r"\ast{}", "×": r"{\times}", "=": "{=}"}

_WIDE_FROM = 5
_RUN_IN = 110
"""Notes up to this many characters share a paragraph."""

_TEMPLATE = r"""% Compiles alone (pdflatex) and by \input; then the document needs \usepackage{booktabs,graphicx}.
\makeatletter
% In a document \documentclass no longer has its meaning of the first line: LaTeX turns it into an error message.
\let\kdalone=y%
\ifx\documentclass\@twoclasseserror \let\kdalone=n\fi
\ifx\documentclass\@notprerr \let\kdalone=n\fi
\if y\kdalone
  \def\kdbegin{%
    \documentclass[10pt]{article}
    \usepackage[utf8]{inputenc}
    \usepackage{booktabs,graphicx}
    \usepackage[paperwidth=@WIDTH@mm,paperheight=@HEIGHT@mm,margin=12mm]{geometry}
    \pagestyle{empty}
    \begin{document}}%
  \def\kdend{\end{document}}%
\else
  \def\kdbegin{\@ifundefined{toprule}{\PackageError{kdbench}{This table needs the packages booktabs and graphicx}{}}{}}%
  \let\kdend\relax
\fi
\makeatother
\kdbegin
\makeatletter
\@ifundefined{kdbox}{\newsavebox\kdbox\newsavebox\kdtext}{}%
\makeatother
\begin{@FLOAT@}[!htbp]
\setlength{\abovecaptionskip}{0pt}\setlength{\belowcaptionskip}{6pt}
\small
\def\kdcaption{@CAPTION@}
\caption[@TITLE@]{\kdcaption}
\label{tab:@LABEL@}
% The table's share of the page is what caption and notes leave.
\sbox\kdtext{\parbox{\linewidth}{Table 00: \kdcaption}}
\edef\kdroom{\the\dimexpr\textheight-\ht\kdtext-\dp\kdtext-40pt\relax}
\sbox\kdtext{\begin{minipage}{\linewidth}\scriptsize\raggedright\setlength{\parskip}{1pt}%
@NOTES@
\end{minipage}}
\edef\kdroom{\the\dimexpr\kdroom-\ht\kdtext-\dp\kdtext\relax}
\ifdim\kdroom<.3\textheight \edef\kdroom{\the\dimexpr\textheight*3/10\relax}\fi
\centering\footnotesize
\setlength{\tabcolsep}{5pt}\renewcommand{\arraystretch}{1.06}
\def\kdpub#1{{\scriptsize #1}}
\def\kdfam#1{\multicolumn{@SPAN@}{@{}l}{\scriptsize\itshape #1}}
\sbox\kdbox{%
\begin{tabular}{@{}l*{@COLUMNS@}{c}@{}}
\toprule
@BODY@
\bottomrule
\end{tabular}}
% Shrunk where it is too wide or too high for the page, never enlarged.
\ifdim\wd\kdbox>\linewidth \sbox\kdbox{\resizebox{\linewidth}{!}{\usebox\kdbox}}\fi
\ifdim\dimexpr\ht\kdbox+\dp\kdbox\relax>\kdroom
  \sbox\kdbox{\resizebox{!}{\kdroom}{\raisebox{\depth}{\usebox\kdbox}}}\fi
\usebox\kdbox
\par\vspace{4pt}
\usebox\kdtext
\end{@FLOAT@}%
\kdend
"""


def escape(text: str) -> str:
    """Plain text to LaTeX that pdflatex can set whatever it holds; characters it has no glyph for become their code."""
    out = []
    for char in " ".join(text.split()):
        if char in _ESCAPES:
            out.append(_ESCAPES[char])
        elif char.isascii() or (char.isalpha() and ord(char) < 0x180):
            out.append(char)
        else:
            plain = unicodedata.normalize("NFKD", char)
            out.append(escape(plain) if plain.isascii() else f"U+{ord(char):04X}")
    return re.sub("-(?=-)", "-{}", "".join(out)) if "--" in text else "".join(out)


def render(layout: TableLayout) -> str:
    count = layout.width
    wide = count >= _WIDE_FROM
    sentences = [rf"\textbf{{{escape(part.text)}}}" if part.strong else escape(part.text) for part in layout.caption]
    body = [_line_of(label, texts) for label, texts in layout.heads]
    for index, block in enumerate(layout.blocks):
        body.append(r"\addlinespace[3pt]" if index > 1 and block[0].kind == "heading" else r"\midrule")
        body += [_line(line) for line in block]
    values = {
        "WIDTH": str(_page_width(layout)),
        "HEIGHT": str(_page_height(layout)),
        "FLOAT": "table*" if wide else "table",
        "TITLE": escape(layout.title),
        "CAPTION": rf"\textbf{{{escape(layout.title.rstrip('.'))}.}} " + "\n".join(sentences),
        "LABEL": re.sub(r"[^A-Za-z0-9:.-]", "-", layout.name),
        "SPAN": str(count + 1),
        "COLUMNS": str(count),
        "BODY": "\n".join(body),
        "NOTES": _notes(layout),
    }
    # One pass, so that a name in a title is not taken for a place to fill.
    return re.sub("@(" + "|".join(values) + ")@", lambda match: values[match[1]], _TEMPLATE)


def _line_of(label: str, texts: tuple[str, ...]) -> str:
    return " & ".join(map(escape, [label, *texts])) + r" \\"


def _line(line: Line) -> str:
    if line.kind in ("heading", "panel"):
        return rf"\kdfam{{{escape(line.label)}}} \\"
    cells = [_cell(cell, small=line.kind == "published") for cell in line.cells]
    if line.kind == "published":
        return " & ".join([rf"\quad\kdpub{{{escape(line.label)}}}", *cells]) + r" \\[1.5pt]"
    mark = f"$^{{{_math(line.mark)}}}$" if line.mark else ""
    return " & ".join([escape(line.label) + mark, *cells]) + r" \\"


def _cell(cell: PrintedCell, small: bool) -> str:
    if not cell.value:
        return cell.word if cell.word in ("", MISSING) else rf"\textit{{{escape(cell.word)}}}"
    value = {1: rf"\textbf{{{cell.value}}}", 2: rf"\underline{{{cell.value}}}"}.get(cell.rank, cell.value)
    std = re.sub(r"^0\.", ".", cell.std)
    above = _math(cell.marks + cell.seeds)
    scripts = (rf"_{{\pm{std}}}" if std else "") + (f"^{{{above}}}" if above else "")
    text = value + (f"${scripts}$" if scripts else "")
    if cell.aside:
        text += f" (${_math(cell.aside)}$)"
    return rf"\kdpub{{{text}}}" if small else text


def _math(text: str) -> str:
    """Marks, seed counts and asides within math mode."""
    return "".join(_MATH.get(char, char) for char in text)


def _notes(layout: TableLayout) -> str:
    """Short notes run in, a long one has a paragraph of its own."""
    text, previous = "", 0
    for label, note in layout.notes:
        length = len(label) + len(note)
        if text:
            text += "\\quad\n" if max(length, previous) <= _RUN_IN else "\\par\n"
        text, previous = f"{text}{_label(label)}{escape(note)}", length
    return text or r"\strut"


def _label(label: str) -> str:
    if not label:
        return ""
    if label == MISSING:
        return "--: "
    return f"{escape(label)}: " if len(label) == 1 else rf"\textit{{{escape(label)}:}} "


def _page_width(layout: TableLayout) -> int:
    """In mm, for a table that stands alone."""
    return max(150, 50 + 22 * layout.width)


def _page_height(layout: TableLayout) -> int:
    """In mm, generous: what a stand-alone page needs for caption, lines and notes."""
    width = _page_width(layout) - 24
    caption = 2 + sum(len(part.text) for part in layout.caption) * 1.75 / width
    notes = sum(1 + len(label + note) * 1.3 / width for label, note in layout.notes)
    lines = 1 + len(layout.heads) + sum(len(block) + 1 for block in layout.blocks)
    return int(35 + 4 * lines + 4.2 * caption + 2.9 * notes)
