"""A cost table's panels: throughput, peak memory, extra parameters."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from .model import STUDENT, Column, CostEntry, CostRow, CostTable
from .table_layout import DASH, MISSING, NOT_FOR, TIMES, Line, PrintedCell, Sentence, TableLayout, pair_heads

_REFERENCES = (STUDENT, "kd")
MIB = 2**20

Figure = Callable[[CostEntry], float | None]


def layout(cost: CostTable) -> TableLayout:
    reference = next((row for key in _REFERENCES for row in cost.rows if row.key == key), None)
    ratio = f", in parentheses as a multiple of {reference.title}'s" if reference else ""
    throughput = _panel(
        cost, reference, f"Training throughput, images/s{ratio}", lambda entry: entry.images_per_second, _number
    )
    blocks = (
        (*throughput, *_inputs(cost)),
        _panel(cost, reference, f"Peak memory, MiB{ratio}", _mebibytes, _number),
        _parameters(cost),
    )
    return TableLayout(
        name=f"{cost.name}-cost",
        title=cost.title,
        caption=_caption(cost),
        heads=pair_heads(cost.columns),
        blocks=tuple(block for block in blocks if block),
        notes=_notes(cost),
    )


def _mebibytes(entry: CostEntry) -> float | None:
    return None if entry.peak_memory_bytes is None else entry.peak_memory_bytes / MIB


def _number(value: float) -> str:
    """Three significant digits at least, without pretending to more than whole units."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def count(value: int) -> str:
    """A number of parameters: 0, 640, 16.8K, 1.80M."""
    for limit, unit in ((999_500, "M"), (1_000, "K")):
        if value >= limit:
            return f"{value / {'M': 1e6, 'K': 1e3}[unit]:.{2 if unit == 'M' else 1}f}{unit}"
    return str(value)


def _panel(
    cost: CostTable, reference: CostRow | None, title: str, figure: Figure, show: Callable[[float], str]
) -> tuple[Line, ...]:
    lines = [Line("panel", title)]
    for row in cost.rows:
        cells = []
        for column in cost.columns:
            entry = row.entries.get(column.key)
            value = figure(entry) if entry else None
            other = reference.entries.get(column.key) if reference and reference is not row else None
            base = figure(other) if other else None
            aside = f"{TIMES}{value / base:.2f}" if value is not None and base else ""
            cells.append(_blank(row, column) if value is None else PrintedCell(show(value), aside=aside))
        lines.append(Line("row", row.title, tuple(cells)))
    return tuple(lines)


def _inputs(cost: CostTable) -> tuple[Line, ...]:
    """What loading and augmenting could deliver: where training comes near it, the device waits for images."""
    cells = []
    for column in cost.columns:
        entries = [row.entries.get(column.key) for row in cost.rows]
        rates = [entry.inputs_per_second for entry in entries if entry and entry.inputs_per_second]
        cells.append(PrintedCell(_number(median(rates))) if rates else PrintedCell(word=MISSING))
    known = any(not cell.word for cell in cells)
    return (Line("row", "loading and augmentation alone", tuple(cells)),) if known else ()


def _parameters(cost: CostTable) -> tuple[Line, ...]:
    """Only rows that have extra parameters, or were not measured; the notes name the others."""
    lines = [Line("panel", "Extra parameters beside the student's, in training / at inference")]
    for row in cost.rows:
        if _is_plain(row):
            continue
        cells = []
        for column in cost.columns:
            entry = row.entries.get(column.key)
            if entry is None or entry.extra_train_params is None or entry.extra_inference_params is None:
                cells.append(_blank(row, column))
            else:
                cells.append(PrintedCell(f"{count(entry.extra_train_params)} / {count(entry.extra_inference_params)}"))
        lines.append(Line("row", row.title, tuple(cells)))
    return tuple(lines) if len(lines) > 1 else ()


def _blank(row: CostRow, column: Column) -> PrintedCell:
    return PrintedCell(word=NOT_FOR if column.key in row.refused else MISSING)


def _is_plain(row: CostRow) -> bool:
    extras = [(entry.extra_train_params, entry.extra_inference_params) for entry in row.entries.values()]
    return bool(extras) and all(extra == (0, 0) for extra in extras)


def _settings(cost: CostTable) -> dict[str, list[str]]:
    """Each way of measuring, with the cells measured so."""
    places: dict[str, list[str]] = {}
    for row in cost.rows:
        for column in cost.columns:
            entry = row.entries.get(column.key)
            if entry:
                text = f"batch {entry.batch_size}, {entry.steps} steps, {entry.device}, memory {entry.memory_kind}"
                places.setdefault(text, []).append(f"{row.title}, {column.teacher}{DASH}{column.student}")
    return places


def _caption(cost: CostTable) -> tuple[Sentence, ...]:
    settings = list(_settings(cost))
    text = "Cost of one training step, from a short run of each method alone"
    if not settings:
        return (Sentence(f"{text}. Nothing has been measured yet."),)
    if len(settings) == 1:
        return (Sentence(f"{text}: {settings[0]}."),)
    return (Sentence(f"{text}. Not all were measured alike; the notes say how."),)


def _notes(cost: CostTable) -> tuple[tuple[str, str], ...]:
    notes: list[tuple[str, str]] = []
    settings = _settings(cost)
    if len(settings) > 1:
        usual = max(settings, key=lambda text: len(settings[text]))
        notes += [("Measured with", f"{usual}, except where named.")]
        notes += [
            ("Measured with", f"{text}: {'; '.join(cells)}.") for text, cells in settings.items() if text != usual
        ]
    plain = [row.title for row in cost.rows if _is_plain(row)]
    if plain:
        notes.append(("No extra parameters", f"{', '.join(plain)}."))
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
