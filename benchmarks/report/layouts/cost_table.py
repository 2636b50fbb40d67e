"""A cost table: throughput, memory with what makes it up, and parameters of each row, pair by pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from ..model import HELD, STUDENT, Column, CostEntry, CostRow, CostTable
from ..table_layout import BLANK, DASH, MISSING, NOT_FOR, TIMES, Line, PrintedCell, Sentence, TableLayout, on_task

REFERENCES = ("kd", STUDENT)
"""Rows whose throughput counts as 1, the first of them that a table has."""

MIB = 2**20

MEDIAN = "of the median step, or of loading alone where that was measured and takes longer"
"""What a throughput is of."""

UNITS = {"text": "sequences"}
"""What a network reads in a second, where that is not images."""


@dataclass(frozen=True)
class Rate:
    """Inputs per second as measured, half the range of the middle half of the steps' rates, and beside KD's.

    None beside one that was measured on another machine.
    """

    value: float
    spread: float | None
    ratio: float | None


def reference(cost: CostTable) -> CostRow | None:
    """The row that the others are compared with."""
    return next((row for key in REFERENCES for row in cost.rows if row.key == key), None)


def rate(entry: CostEntry | None, base: CostEntry | None) -> Rate | None:
    """The throughput of a cell, beside that of the reference in the same column.

    Both are measured alike, so a row's ratio is its throughput by the reference's, and the reference's is 1.
    """
    if entry is None or not entry.images_per_second:
        return None
    spread = None
    if len(entry.step_seconds) > 3:
        low, _, high = quantiles([entry.batch_size / seconds for seconds in entry.step_seconds], n=4)
        spread = (high - low) / 2
    known = base.images_per_second if base is not None and base.machine == entry.machine else None
    return Rate(entry.images_per_second, spread, entry.images_per_second / known if known else None)


def over_columns(cost: CostTable, row: CostRow) -> tuple[Rate, float | None] | None:
    """A row's throughput over all its columns (inputs of a step of each by their seconds) and its greatest peak, bytes.

    None where a column was not measured.
    """
    entries = _entries(cost, row)
    if entries is None:
        return None
    against = reference(cost)
    bases = _entries(cost, against) if against else None
    throughput, peaks = _harmonic(entries), [entry.peak_memory_bytes for entry in entries]
    known = [peak for peak in peaks if peak is not None]
    peak = float(max(known)) if len(known) == len(peaks) else None
    alike = bases and [entry.machine for entry in bases] == [entry.machine for entry in entries]
    return Rate(throughput, None, throughput / _harmonic(bases) if bases and alike else None), peak


def _entries(cost: CostTable, row: CostRow) -> list[CostEntry] | None:
    entries = [row.entries.get(column.key) for column in cost.columns if column.key not in row.refused]
    known = [entry for entry in entries if entry and entry.images_per_second]
    return known if known and len(known) == len(cost.columns) else None


def _harmonic(entries: Sequence[CostEntry]) -> float:
    return len(entries) / sum(1 / entry.images_per_second for entry in entries if entry.images_per_second)


def unit(cost: CostTable) -> str:
    """What its throughput counts."""
    modalities = {entry.modality for row in cost.rows for entry in row.entries.values()}
    return "/".join(sorted({UNITS.get(modality, "images") for modality in modalities})) + "/s"


def number(value: float) -> str:
    """Three significant digits at least, without pretending to more than whole units."""
    return f"{value:.{_digits(value)}f}"


def _digits(value: float) -> int:
    return 0 if value >= 100 else 1 if value >= 10 else 2


def count(value: int) -> str:
    """A number of parameters: 0, 640, 16.8K, 1.80M."""
    for limit, sign in ((999_500, "M"), (1_000, "K")):
        if value >= limit:
            return f"{value / {'M': 1e6, 'K': 1e3}[sign]:.{2 if sign == 'M' else 1}f}{sign}"
    return str(value)


def layout(cost: CostTable) -> TableLayout:
    split = any(entry.memory_split for row in cost.rows for entry in row.entries.values())
    blocks = tuple(_pair(cost, column, split) for column in cost.columns)
    against = reference(cost)
    heads = [("Training", unit(cost)), ("", f"{TIMES} {against.title}" if against else BLANK), ("Peak", "MiB")]
    heads += [("of it, MiB" if i == 0 else "", kind) for i, kind in enumerate(HELD)] if split else []
    heads += [("Extra parameters", "training"), ("", "deployed")]
    return TableLayout(
        name=f"{cost.name}-cost",
        title=f"{cost.title.rstrip('.')}: cost of training",
        caption=_caption(cost),
        heads=(("", tuple(head for head, _ in heads)), ("Method", tuple(sub for _, sub in heads))),
        blocks=blocks,
        notes=_notes(cost, split),
    )


def _pair(cost: CostTable, column: Column, split: bool) -> tuple[Line, ...]:
    against = reference(cost)
    base = against.entries.get(column.key) if against else None
    held = len(HELD) if split else 0
    lines = [
        Line(
            "panel",
            f"{column.teacher_title} to {column.student_title}".removeprefix(" to ") + on_task(column, cost.columns),
        )
    ]
    for row in cost.rows:
        entry = row.entries.get(column.key)
        if entry is None:
            blank = PrintedCell(word=NOT_FOR if column.key in row.refused else MISSING)
            lines.append(Line("row", row.title, (blank,) * (5 + held)))
            continue
        lines.append(Line("row", row.title, (*_rates(rate(entry, base)), *_memory(entry, split), *_extra(entry))))
    inputs = [entry.inputs_per_second for row in cost.rows if (entry := row.entries.get(column.key))]
    if known := [value for value in inputs if value]:
        cells = (PrintedCell(number(median(known))), *[PrintedCell()] * (4 + held))
        lines.append(Line("row", "loading alone", cells))
    return tuple(lines)


def _rates(rate: Rate | None) -> tuple[PrintedCell, ...]:
    if rate is None:
        return PrintedCell(word=MISSING), PrintedCell(word=MISSING)
    digits = _digits(rate.value)
    spread = "" if rate.spread is None else f"{rate.spread:.{digits}f}"
    ratio = PrintedCell(word=MISSING) if rate.ratio is None else PrintedCell(f"{rate.ratio:.2f}")
    return PrintedCell(f"{rate.value:.{digits}f}", spread), ratio


def _memory(entry: CostEntry, split: bool) -> tuple[PrintedCell, ...]:
    sizes = [entry.peak_memory_bytes, *((entry.memory_split or {}).get(kind) for kind in HELD if split)]
    return tuple(PrintedCell(word=MISSING) if value is None else PrintedCell(_mebibytes(value)) for value in sizes)


def _mebibytes(value: float) -> str:
    return f"{value / MIB:.{0 if value >= 10 * MIB else 1}f}"


def _extra(entry: CostEntry) -> tuple[PrintedCell, ...]:
    values = (entry.extra_train_params, entry.extra_inference_params)
    return tuple(PrintedCell(word=MISSING) if value is None else PrintedCell(count(value)) for value in values)


def _settings(cost: CostTable) -> dict[str, list[str]]:
    """Each way of measuring, with the cells measured so."""
    by_remark: dict[str, list[str]] = {}
    several = len(machines(cost)) > 1
    for row in cost.rows:
        for column in cost.columns:
            entry = row.entries.get(column.key)
            if entry:
                text = f"batch {entry.batch_size}, {entry.steps} steps, {entry.device}"
                text += f" of {entry.machine}" if several else ""
                pair = f"{column.teacher_title}{DASH}{column.student_title}{on_task(column, cost.columns)}"
                by_remark.setdefault(text, []).append(f"{row.title}, {pair}")
    return by_remark


def machines(cost: CostTable) -> list[str]:
    """Those that its figures are from, the usual one first."""
    counts = Counter(entry.machine for row in cost.rows for entry in row.entries.values())
    return [machine for machine, _ in counts.most_common()]


def _caption(cost: CostTable) -> tuple[Sentence, ...]:
    settings = list(_settings(cost))
    if not settings:
        return (Sentence("Nothing has been measured yet."),)
    if len(settings) == 1:
        return (Sentence(f"Each method alone, {settings[0]}."),)
    return (Sentence("Each method alone, not all measured alike; the notes say how."),)


def _notes(cost: CostTable, split: bool) -> tuple[tuple[str, str], ...]:
    notes: list[tuple[str, str]] = []
    settings = _settings(cost)
    entries = [entry for row in cost.rows for entry in row.entries.values()]
    if len(settings) > 1:
        usual = max(settings, key=lambda text: len(settings[text]))
        notes += [("Measured with", f"{usual}, except where named.")]
        notes += [
            ("Measured with", f"{text}: {'; '.join(cells)}.") for text, cells in settings.items() if text != usual
        ]
    if len(machines(cost)) > 1:
        notes.append((TIMES, "only between figures of one machine."))
    if any(len(entry.step_seconds) > 3 for entry in entries):
        notes.append(("±", f"half the interquartile range of the steps; {unit(cost)} and {TIMES} are {MEDIAN}."))
    kinds = dict.fromkeys(entry.memory_kind for entry in entries)
    if kinds:
        device = "" if any("CUDA" in kind for kind in kinds) else ", not memory of a device"
        rest = "; activations are the peak without the other parts, buffers of libraries included" if split else ""
        notes.append(("Memory", f"{', '.join(kinds)}{device}{rest}."))
    if phased := [row.title for row in cost.rows if any(entry.first_phases for entry in row.entries.values())]:
        notes.append(("Without their first phases", f"{', '.join(phased)}."))
    if any(row.refused for row in cost.rows):
        notes.append((NOT_FOR, "the method is not made for the pair."))
    cells = [row.entries.get(c.key) for row in cost.rows for c in cost.columns if c.key not in row.refused]
    blank = sum(entry is None or entry.images_per_second is None for entry in cells)
    if blank:
        notes.append((MISSING, f"not measured: {blank} of {len(cells)} cells have no throughput."))
    if cost.provenance:
        notes.append(("Provenance", "; ".join(cost.provenance) + "."))
    return tuple(notes)
