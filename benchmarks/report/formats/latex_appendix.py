"""What a paper's table leaves out, as an appendix: protocol, settings, sources, provenance; and the papers it cites."""

from __future__ import annotations

from dataclasses import replace

from .. import citations
from ..layouts.paper_table import TITLE
from ..model import Table
from ..table_layout import Line, TableLayout, cut
from .latex import body as floats
from .latex_text import flowing, label


def bibliography(table: Table) -> str:
    """The papers that the rows cite as BibTeX; empty where there is none."""
    wanted = {key for row in (*table.rows, *table.quoted) for key in row.cites}
    entries = [entry for key, entry in citations.bibliography().items() if key in wanted]
    return "\n\n".join(entries) + "\n" if entries else ""


def body(table: Table, full: TableLayout, paper: TableLayout) -> str:
    """What the full table says in words and the paper's table does not, and the published values with their gaps."""
    name = label(table.name)
    lines = [
        rf"\subsection*{{\raggedright {flowing(cut(table.title, TITLE))}: how it was made}}\label{{app:{name}}}",
        r"\begingroup\small\raggedright\setlength{\parindent}{0pt}\setlength{\parskip}{2pt plus 1pt}",
        *([] if len(table.title) <= TITLE else [rf"{flowing(table.title)}\par"]),
        *(rf"{flowing(sentence.text)}\par" for sentence in full.caption),
        *(rf"{_name(note)}{flowing(text)}\par" for note, text in full.notes if (note, text) not in paper.notes),
        r"\endgroup",
    ]
    values = _published(full, len(table.columns))
    return "\n".join([*lines, floats(values)] if values.blocks else lines)


def _name(note: str) -> str:
    return rf"\textit{{{flowing(note)}:}} " if note else ""


def _published(full: TableLayout, columns: int) -> TableLayout:
    """Of the first columns of the full table, its pairs, the published values alone, each in the line of its row."""
    blocks = []
    for block in full.blocks:
        lines, label_of = [], ""
        for line in block:
            if line.kind == "published":
                name = label_of if line.label == "published" else line.label
                lines.append(Line("row", name, tuple(replace(cell, std="") for cell in line.cells[:columns])))
            elif line.kind == "row":
                label_of = line.label
        if lines:
            blocks.append(tuple(lines))
    return TableLayout(
        name=f"{full.name}-published",
        title=f"{cut(full.title, TITLE).rstrip('.')}: published values",
        caption=(),
        heads=tuple((label, texts[:columns]) for label, texts in full.heads),
        blocks=tuple(blocks),
        notes=(("", "Marks and parentheses as in the notes of the appendix."),),
    )
