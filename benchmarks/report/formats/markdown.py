"""GitHub Markdown of a layout."""

from __future__ import annotations

import re

from ..table_layout import Line, PrintedCell, TableLayout


def escape(text: str) -> str:
    """Plain text that neither ends a table cell nor turns into mark-up; underscores within words are none."""
    return re.sub(r"([\\|*<>`\[\]]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(text.split()))


def render(layout: TableLayout) -> str:
    sentences = [f"**{escape(one.text)}**" if one.strong else escape(one.text) for one in layout.caption]
    pairs = ["<br>".join(map(escape, texts)) for texts in zip(*(texts for _, texts in layout.heads), strict=True)]
    labels = "<br>".join(label for label, _ in layout.heads if label)
    grid = [_row([labels, *pairs]), _row(["---", *["---:"] * len(pairs)])]
    grid += [_line(line, len(pairs)) for block in layout.blocks for line in block]
    notes = [f"- {f'{escape(label)}: ' if label else ''}{escape(text)}" for label, text in layout.notes]
    blocks = [f"## {escape(layout.title)}", " ".join(sentences), "\n".join(grid), "\n".join(notes)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _line(line: Line, count: int) -> str:
    if line.kind in ("heading", "panel"):
        return _row([f"*{escape(line.label)}*", *[""] * count])
    label = f"↳ {escape(line.label)}" if line.kind == "published" else escape(line.label) + line.mark
    return _row([label, *map(_cell, line.cells)])


def _cell(cell: PrintedCell) -> str:
    if not cell.value:
        return cell.word
    value = {1: f"**{cell.value}**", 2: f"<ins>{cell.value}</ins>"}.get(cell.rank, cell.value)
    std = f" ± {cell.std}" if cell.std else ""
    seeds = f" ({cell.seeds})" if cell.seeds else ""
    aside = f" ({cell.aside})" if cell.aside else ""
    marks = f"<sup>{cell.marks}</sup>" if cell.marks else ""
    return f"{value}{std}{marks}{seeds}{aside}"
