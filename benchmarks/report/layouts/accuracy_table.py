"""An accuracy table's cells, caption and notes, in plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from string import ascii_lowercase

from ..model import DECIMALS, Column, Published, Table, TableEntry, TableRow
from ..ranking import Ranking, average_ranks, ranking
from ..seed_statistics import Summary, gap, half_width, summarise, teacher_gap, unusual, usual_n
from ..table_layout import (
    BEST,
    BLANK,
    CHOICE,
    DAGGER,
    DASH,
    MISSING,
    NOT_FOR,
    TIED,
    UNDECIDED,
    UNKNOWN,
    Line,
    PrintedCell,
    Sentence,
    TableLayout,
    on_task,
    pair_heads,
    sentence,
    signed,
)

UNTOLD = (
    "not told from the best of its column: no row is above it by a one-sided paired t test over the seeds at 5 %, "
    "Bonferroni's correction for the number of rows"
)
RANKING = "best and second best mean of a column, the plain student included."

MAX_LISTED = 12
"""Incomplete cells named one by one; more are counted, and are in the CSV."""


def layout(table: Table) -> TableLayout:
    n, daggers, ranked = usual_n(table), dagger_marks(table), ranking(table)
    average = average_ranks(table, ranked) if table.average_rank else None
    reference = _teacher_lines(table, daggers)
    for row in table.plain:
        reference += _row_lines(table, row, ranked, n, daggers, average)
    blocks = [tuple(reference)]
    for family, rows in table.families.items():
        lines = [Line("heading", family)]
        for row in rows:
            lines += _row_lines(table, row, ranked, n, daggers, average)
        blocks.append(tuple(lines))
    if table.quoted:
        blocks.append(
            (Line("heading", "published, not run here"), *(_quoted_line(table, row, daggers) for row in table.quoted))
        )
    heads = pair_heads(table.columns)
    if table.average_rank:
        over = ("Average", "rank", BLANK, BLANK)
        heads = tuple((label, (*texts, over[i])) for i, (label, texts) in enumerate(heads))
    return TableLayout(
        name=table.name,
        title=table.title,
        caption=tuple(_caption(table, n)),
        heads=heads,
        blocks=tuple(tuple(_filled(line, len(heads[0][1])) for line in block) for block in blocks),
        notes=tuple(_notes(table, ranked, n)),
    )


def _teacher_lines(table: Table, daggers: Mapping[str, str]) -> list[Line]:
    accuracies = [
        PrintedCell(word=MISSING)
        if column.teacher_accuracy is None
        else PrintedCell(value=f"{column.teacher_accuracy:.{DECIMALS}f}")
        for column in table.columns
    ]
    lines = [Line("row", "Teacher", tuple(accuracies))]
    cells = tuple(
        published_cell(
            column.teacher_published, teacher_gap(column.teacher_accuracy, column.teacher_published), daggers
        )
        if column.teacher_published
        else PrintedCell()
        for column in table.columns
    )
    if any(cell.value for cell in cells):
        lines.append(Line("published", "published", cells))
    return lines


def _filled(line: Line, width: int) -> Line:
    """A line with as many cells as there are columns; headings have none."""
    return replace(line, cells=(*line.cells, *[PrintedCell()] * (width - len(line.cells)))) if line.cells else line


def _row_lines(
    table: Table,
    row: TableRow,
    ranked: Ranking,
    n: int | None,
    daggers: Mapping[str, str],
    average: Mapping[str, float] | None,
) -> list[Line]:
    """A row's own line and that of its published values; with ``average`` ranks the row's is the last cell."""
    measured, published = [], []
    for column in table.columns:
        entry = row.entries.get(column.key)
        summary = summarise(entry)
        measured.append(measured_cell(table, summary, n, ranked, (row.key, column.key)))
        value = entry.published if entry else None
        difference = gap(summary, value)
        published.append(published_cell(value, difference, daggers) if value else PrintedCell())
    if average is not None:
        measured.append(rank_cell(average.get(row.key)))
    lines = [Line("row", row.title, tuple(measured), CHOICE if row.our_choice else "")]
    if any(cell.value for cell in published):
        lines.append(Line("published", "published", tuple(published)))
    return lines


def _quoted_line(table: Table, row: TableRow, daggers: Mapping[str, str]) -> Line:
    values = [entry.published if (entry := row.entries.get(column.key)) else None for column in table.columns]
    cells = (published_cell(value, None, daggers) if value else PrintedCell() for value in values)
    return Line("published", row.title, tuple(cells))


def rank_cell(average: float | None) -> PrintedCell:
    """A row's average rank, if it has one."""
    return PrintedCell(word=MISSING) if average is None else PrintedCell(f"{average:.1f}")


def measured_cell(
    table: Table, summary: Summary, n: int | None, ranked: Ranking, place: tuple[str, str]
) -> PrintedCell:
    """A mean with its deviation or interval and how it ranks, or why there is none; ``n`` is the table's usual one."""
    mean, spread = summary.mean("last"), summary.std("last")
    if table.intervals:
        spread = half_width(spread, summary.n)
    if mean is None:
        if not summary.diverged and not summary.failed:
            return PrintedCell(word=NOT_FOR if summary.refused else MISSING)
        word = "div." if summary.diverged >= summary.failed else "fail."
        count = max(summary.diverged, summary.failed)
        return PrintedCell(word=word if count == summary.planned else f"{word} {count}/{summary.planned}")
    seeds = ""
    if unusual(summary, n):
        seeds = f"n={summary.n}" if summary.n == summary.planned else f"n={summary.n}/{summary.planned}"
    marks = (TIED if place in ranked.tied else "") + (UNDECIDED if ranked.undecided(place) else "")
    text = "" if spread is None else f"{spread:.{DECIMALS}f}"
    return PrintedCell(f"{mean:.{DECIMALS}f}", text, seeds, ranked.marked(place), marks)


def published_cell(published: Published, difference: float | None, daggers: Mapping[str, str]) -> PrintedCell:
    """A published value with its marks (those of :func:`dagger_marks`, or of its epoch rule) and the gap to it."""
    marks = "" if published.comparable else daggers[_reason(published)]
    if published.comparable:
        marks = {"best": BEST, "unknown": UNKNOWN}.get(published.epoch_rule, "")
    std = "" if published.std is None else f"{published.std:.{DECIMALS}f}"
    aside = "" if difference is None else signed(difference)
    return PrintedCell(f"{published.value:.{DECIMALS}f}", std, marks=marks, aside=aside)


def _caption(table: Table, n: int | None) -> list[Sentence]:
    cells = [summarise(row.entries.get(column.key)) for row in table.rows for column in table.columns]
    epoch = "last epoch"
    spread = "95 % confidence interval (Student's t)" if table.intervals else "sample standard deviation"
    if not any(cell.n for cell in cells):
        text = f"{table.metric}, {epoch}. No run of this table has finished yet."
    elif n is None:
        text = f"{table.metric}, mean ± {spread} over the n finished seeds given with each, {epoch}."
    else:
        seeds = "n = 1 seed (too few for a deviation)" if n == 1 else f"n = {n} seeds"
        other = " unless another n is given" if any(unusual(cell, n) for cell in cells) else ""
        text = f"{table.metric}, mean ± {spread} over {seeds}{other}, {epoch}."
    out = [Sentence(text)]
    if table.protocol_lines:
        out.append(Sentence(sentence("Protocol: " + "; ".join(table.protocol_lines))))
    out += deviation_sentence(table)
    chosen = [f"{row.title}: {', '.join(row.our_choice)}" for row in table.rows if row.our_choice]
    if chosen:
        out.append(Sentence(sentence(f"Settings of our own choice ({CHOICE}): " + "; ".join(chosen))))
    return out


def _notes(table: Table, ranked: Ranking, n: int | None) -> list[tuple[str, str]]:
    notes = [("", sentence(note[:1].upper() + note[1:])) for note in table.notes]
    notes += [(row.title, sentence(row.settings_note)) for row in table.rows if row.settings_note]
    teacher_notes: dict[str, list[str]] = {}
    for column in table.columns:
        names = teacher_notes.setdefault(column.teacher_note, []) if column.teacher_note else []
        if column.teacher_title not in names:
            names.append(column.teacher_title)
    notes += [(f"Teacher {', '.join(names)}", sentence(note)) for note, names in teacher_notes.items()]
    notes += _ranking_notes(table, ranked)
    if any(unusual(summarise(entry), n) for row in table.rows for entry in row.entries.values()):
        notes.append(("n=", "finished seeds, or finished/planned ones; the mean is over the finished."))
    notes += [*_incomplete(table), *_published_notes(table), *provenance_note(table)]
    return [*notes, ("Digest of the cells", f"{table.digest}.")] if table.digest else notes


def deviation_sentence(table: Table) -> list[Sentence]:
    """What was not run as the paper has it; nothing where all was."""
    if not table.deviations:
        return []
    return [Sentence(sentence("NOT the paper's protocol: " + "; ".join(table.deviations)), strong=True)]


def provenance_note(table: Table) -> list[tuple[str, str]]:
    """With what the table was computed; nothing where nothing was."""
    return [("Provenance", "; ".join(table.provenance) + ".")] if table.provenance else []


def _ranking_notes(table: Table, ranked: Ranking) -> list[tuple[str, str]]:
    """What is compared with what, by which test, and what takes no part."""
    return [*ranking_marks(ranked, table.average_rank), *unranked(table, ranked)]


def unranked(table: Table, ranked: Ranking) -> Iterator[tuple[str, str]]:
    """The cells that take no part in the ranking of their column, by name."""
    titles = {row.key: row.title for row in table.rows}
    places = {column.key: _place(column, table) for column in table.columns}
    cells = [f"{titles[row]}, {places[column]} (n={n})" for (row, column), n in ranked.left_out.items()]
    if cells:
        yield "Not ranked, as n differs from the rest of the column", f"{_listed(cells)}."


def ranking_marks(ranked: Ranking, average: bool) -> Iterator[tuple[str, str]]:
    """What the marks of a ranking mean; ``average``: average ranks are shown."""
    if ranked.ranks:
        yield "Bold, underlined", RANKING
    if ranked.tied:
        yield TIED, "shares its place: equal as printed."
    if ranked.tested:
        untested = (
            ""
            if ranked.tested >= {column for _, column in ranked.ranks}
            else "; tested where all rows have the same seeds, 3 or more"
        )
        yield UNDECIDED, f"{UNTOLD}{untested}."
    elif ranked.ranks:
        yield "Significance", "nothing is tested; that takes 3 seeds or more, the same for all rows."
    if average:
        yield "Average rank", "over the columns, of the rows that are ranked in every one; 1 is the best."


def _listed(cells: list[str]) -> str:
    """The first of some cells, and how many others there are."""
    more = f"; and {len(cells) - MAX_LISTED} more" if len(cells) > MAX_LISTED else ""
    return "; ".join(cells[:MAX_LISTED]) + more


def _incomplete(table: Table) -> list[tuple[str, str]]:
    cells = [(row, column, summarise(row.entries.get(column.key))) for row in table.rows for column in table.columns]
    notes = _refusals(table)
    blank = sum(not (cell.n or cell.diverged or cell.failed or cell.refused) for _, _, cell in cells)
    if blank:
        notes.append((MISSING, f"missing: {blank} of {len(cells)} cells have no finished run."))
    broken = [
        f"{row.title}, {_place(column, table)}: " + _counts(cell)
        for row, column, cell in cells
        if cell.diverged or cell.failed or 0 < cell.n < cell.planned
    ]
    if broken:
        notes.append(("Incomplete (div.: diverged, fail.: failed)", f"{_listed(broken)}."))
    return notes


def _place(column: Column, table: Table) -> str:
    """A column in words."""
    task = on_task(column, table.columns)
    metric = f" ({column.metric})" if task else ""
    return f"{column.teacher_title}{DASH}{column.student_title}{task}{metric}"


def _refusals(table: Table) -> list[tuple[str, str]]:
    reasons = dict.fromkeys(
        run.message for row in table.rows for entry in row.entries.values() for run in entry.runs if run.message
    )
    return [(NOT_FOR, sentence("; ".join(reasons)))] if reasons else []


def _counts(cell: Summary) -> str:
    counts = {"finished": cell.n, "diverged": cell.diverged, "failed": cell.failed, "missing": cell.missing}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) + f" of {cell.planned}"


def published_values(table: Table) -> list[tuple[str, Published]]:
    """The published values that a table shows, each with the title of its row."""
    values: list[tuple[str, Published]] = [
        ("teacher", column.teacher_published) for column in table.columns if column.teacher_published
    ]
    for row in (*table.rows, *table.quoted):
        entries: list[TableEntry | None] = [row.entries.get(column.key) for column in table.columns]
        values += [(row.title, entry.published) for entry in entries if entry and entry.published]
    return values


def dagger_marks(table: Table) -> dict[str, str]:
    """A mark for each reason why published values are not comparable, so that a dagger can be told from another."""
    reasons = dict.fromkeys(_reason(value) for _, value in published_values(table) if not value.comparable)
    letters = ascii_lowercase if len(reasons) > 1 else ""
    return {reason: DAGGER + (letters[i % 26] * (1 + i // 26) if letters else "") for i, reason in enumerate(reasons)}


def _reason(published: Published) -> str:
    return published.reason or "reason not stated"


def _published_notes(table: Table) -> list[tuple[str, str]]:
    values = published_values(table)
    if not values:
        return []
    rules = {value.epoch_rule for _, value in values if value.comparable}
    notes = [("published", "the value in the literature and, in parentheses, ours minus it by the same epoch rule.")]
    if "best" in rules:
        notes.append((BEST, "read at the best epoch on the test set; the gap is that of our best-epoch mean."))
    if "unknown" in rules:
        notes.append((UNKNOWN, "epoch rule not known, hence no gap."))
    notes += [(mark, f"not comparable, hence no gap: {reason}.") for reason, mark in dagger_marks(table).items()]
    sources: dict[str, list[str]] = {}
    for title, value in values:
        titles = sources.setdefault(value.source, [])
        if title not in titles:
            titles.append(title)
    listed = "; ".join(f"{source} ({', '.join(titles)})" for source, titles in sources.items())
    notes.append(("Sources of published values", f"{listed}."))
    return notes
