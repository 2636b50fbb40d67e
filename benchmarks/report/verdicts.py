"""Whether published values were reproduced: a verdict on each, by a rule that is printed. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.console import counted, say
from ..common.files import csv_text, write_text
from ..store import manifest
from ..store.runs import Store
from .collect import collect
from .formats import markdown
from .model import Published, Table
from .seed_statistics import Summary, summarise
from .table_layout import signed

if TYPE_CHECKING:
    import pandas


class Judgement(StrEnum):
    """What became of a published value, as it is printed."""

    REPRODUCED = "reproduced"
    WITHIN_SPREAD = "within spread"
    NOT_REPRODUCED = "not reproduced"
    PRELIMINARY = "preliminary"
    NOT_COMPARABLE = "not comparable"
    NO_RESULT = "no result"


NEAR = 0.3
"""Points of the metric within which a mean of :data:`ENOUGH` seeds counts as the published value."""

ENOUGH = 3

RULE = (
    f"gap: our mean minus the published value, by that value's own epoch rule. With n ≥ {ENOUGH} seeds: reproduced if "
    f"|gap| ≤ max({NEAR}, 2 standard errors of our mean); within spread if |gap| ≤ 2 sample standard deviations; else "
    f"not reproduced. With fewer: preliminary, which is no verdict. Like is compared with like: where protocol, epoch "
    f"rule, teacher or settings are not those of the published value, it is not comparable."
)


@dataclass(frozen=True)
class Verdict:
    """What became of one published value. ``ours`` and ``std`` are by ``epoch_rule``; None where there are none."""

    table: str
    row: str
    title: str
    pair: str
    metric: str
    ours: float | None
    std: float | None
    n: int
    planned: int
    published: float
    published_std: float | None
    gap: float | None
    epoch_rule: str
    verdict: Judgement
    why: str
    source: str

    @property
    def words(self) -> str:
        """The verdict with what belongs to it."""
        if self.verdict is Judgement.PRELIMINARY:
            return f"preliminary, n = {self.n}" + (f" ({self.why})" if self.why else "")
        return f"{self.verdict} ({self.why})" if self.why else self.verdict


def verdicts(table: Table) -> tuple[Verdict, ...]:
    """One verdict for every published value beside a row that was run."""
    every = []
    for row in table.rows:
        for column in table.columns:
            entry = row.entries.get(column.key)
            if entry is None or entry.published is None:
                continue
            published, summary = entry.published, summarise(entry)
            rule = published.epoch_rule if published.epoch_rule != "unknown" else "last"
            ours = summary.mean(rule)
            judgement, why = judged(summary, published)
            gap = None if ours is None or judgement is Judgement.NOT_COMPARABLE else ours - published.value
            place = table.name, row.key, row.title, column.key, column.metric
            measured = ours, summary.std(rule), summary.n, summary.planned
            literature = published.value, published.std, gap, published.epoch_rule
            every.append(Verdict(*place, *measured, *literature, judgement, why, published.source))
    return tuple(every)


def judged(summary: Summary, published: Published) -> tuple[Judgement, str]:
    """The verdict on a cell's runs, and why where it does not follow from the figures."""
    if not published.comparable:
        return Judgement.NOT_COMPARABLE, published.reason
    if published.epoch_rule == "unknown":
        return Judgement.NOT_COMPARABLE, "the published value's epoch rule is not known"
    counts = {"diverged": summary.diverged, "failed": summary.failed, "missing": summary.missing}
    lost = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    mean, std = summary.mean(published.epoch_rule), summary.std(published.epoch_rule)
    if mean is None:
        return Judgement.NO_RESULT, "the method is not for this pair" if summary.refused and not lost else lost
    why = f"of {counted(summary.planned, 'seed')} {lost}" if lost else ""
    if summary.n < ENOUGH or std is None:
        return Judgement.PRELIMINARY, why
    gap = round(abs(mean - published.value), 6)  # 0.3 is no 0.30000000000000004
    if gap <= max(NEAR, 2 * std / math.sqrt(summary.n)):
        return Judgement.REPRODUCED, why
    return (Judgement.WITHIN_SPREAD if gap <= 2 * std else Judgement.NOT_REPRODUCED), why


def of_table(output: Path, table_folder: str, say: Callable[[str], None] = say) -> tuple[Verdict, ...]:
    """The verdicts on a table of a store.

    Args:
        output: the store's folder.
        table_folder: its name in it.
        say: called with a line for each run that is damaged.

    Raises:
        UserError: nothing was ever planned under that name.
    """
    return verdicts(collect(manifest.existing(output, table_folder), Store(output), say))


def summary(judged: Sequence[Verdict]) -> str:
    """How many of the published values were reproduced, in one line."""
    counts = Counter(one.verdict for one in judged)
    others = ", ".join(f"{counts[one]} {one}" for one in Judgement if counts[one] and one is not Judgement.REPRODUCED)
    line = f"{counts[Judgement.REPRODUCED]} of {counted(len(judged), 'published cell')} reproduced"
    return f"{line}; {others}" if others else line


_HEADS = ("method", "pair", "ours", "published", "gap", "verdict")


def _printed(one: Verdict) -> tuple[str, ...]:
    ours = "--" if one.ours is None else f"{one.ours:.2f}" + ("" if one.std is None else f" ± {one.std:.2f}")
    published = f"{one.published:.2f}" + ("" if one.published_std is None else f" ± {one.published_std:.2f}")
    gap = "" if one.gap is None else signed(one.gap)
    return one.title, one.pair, f"{ours} (n = {one.n})", published, gap, one.words


def text(judged: Sequence[Verdict]) -> str:
    """The verdicts for a terminal, with summary and rule."""
    lines = [_HEADS, *map(_printed, judged)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = (2, 3, 4)
    aligned = [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    return "\n".join([*(line.rstrip() for line in aligned), "", f"{summary(judged)}.", RULE])


def as_markdown(judged: Sequence[Verdict], title: str) -> str:
    """The same as Markdown, with the sources."""
    lines: list[tuple[str, ...]] = [_HEADS, ("---", "---", "---:", "---:", "---:", "---")]
    lines += [tuple(map(markdown.escape, _printed(one))) for one in judged]
    titles: dict[str, dict[str, None]] = {}
    for one in judged:
        titles.setdefault(one.source, {})[one.title] = None
    notes = [f"- Rule: {markdown.escape(RULE)}"]
    notes += [f"- {markdown.escape(source)}: {markdown.escape(', '.join(names))}." for source, names in titles.items()]
    blocks = [f"## {markdown.escape(title)}: published values reproduced", f"**{summary(judged)}.**"]
    return "\n\n".join([*blocks, "\n".join(f"| {' | '.join(cells)} |" for cells in lines), "\n".join(notes)]) + "\n"


def as_csv(judged: Sequence[Verdict]) -> str:
    """One line per published value; a figure that there is not is empty."""
    names = [field.name for field in fields(Verdict)]
    return csv_text([names, *([_field(getattr(one, name)) for name in names] for one in judged)])


def _field(value: object) -> object:
    return "" if value is None else f"{value + 0.0:.4f}" if isinstance(value, float) else value


def write(judged: Sequence[Verdict], output: Path, table_folder: str) -> list[Path]:
    """Write TABLE-verdicts.md and .csv beside a table of a store, and return their paths."""
    shown, folder = manifest.existing(output, table_folder), manifest.path(output, table_folder).parent
    texts = {".md": as_markdown(judged, shown.title), ".csv": as_csv(judged)}
    files = {folder / f"{shown.name}-verdicts{suffix}": content for suffix, content in texts.items()}
    for file, content in files.items():
        write_text(file, content)
    return list(files)


def frame(output: Path | str, table: str = "") -> pandas.DataFrame:
    """The verdicts on one table of a store, or on all of them, as a DataFrame with a row for each published value.

    Raises:
        UserError: nothing was ever planned under that name.
    """
    import pandas

    root = Path(output)
    table_folders = [table] if table else manifest.table_folders(root)
    rows = [{**asdict(one), "table": name} for name in table_folders for one in of_table(root, name)]
    return pandas.DataFrame(rows, columns=[field.name for field in fields(Verdict)])
