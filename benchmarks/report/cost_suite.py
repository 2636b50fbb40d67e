"""The cost table and its plots, from a file that ``pytest benchmarks/ --benchmark-json FILE`` wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pydantic import BaseModel

from kd_methods.errors import UserError

from ..common.console import say
from ..common.files import read_csv, read_json, shaped
from ..common.network_names import network_title
from . import write_layout
from .facts import KINDS, REFERENCE, BenchmarkFile, GroupMemory, Inference, Loop, Noted, Stats, TrainingStep
from .layouts import loop_table as loop
from .layouts.cost_table import MIB, count
from .model import SECTIONS
from .table_layout import MISSING, TIMES, Line, PrintedCell, Sentence, TableLayout


@dataclass(frozen=True)
class MeasuredMethod:
    """One method on one pair: facts of its training step, and by batch size those of its inference.

    ``turns`` are seconds of a step of KD and of one of the method after it.
    """

    facts: TrainingStep
    turns: Sequence[tuple[float, float]]
    inference: Mapping[int, Inference]

    @property
    def title(self) -> str:
        return "Student" if self.facts.method == "student" else self.facts.title

    @property
    def ratio(self) -> float:
        """Throughput as a multiple of KD's: the median over the turns."""
        return median(kd / method for kd, method in self.turns)

    @property
    def spread(self) -> float | None:
        """Half the range of the turns' ratios; None of one turn."""
        ratios = [kd / method for kd, method in self.turns]
        return (max(ratios) - min(ratios)) / 2 if len(ratios) > 1 else None

    @property
    def shares(self) -> dict[str, float]:
        """The sections of a step, which add up to 1."""
        seconds = vars(self.facts.split)
        return {section: seconds[section] / sum(seconds.values()) for section in SECTIONS}


Pairs = dict[str, dict[str, MeasuredMethod]]


@dataclass(frozen=True)
class Measurements:
    """What a file holds: methods by pair, and the facts of the loop and of groups' memory, in the order of the file."""

    pairs: Pairs
    loops: Sequence[Loop]
    memories: Sequence[GroupMemory]


def read(path: Path) -> Measurements:
    """What the benchmark suites wrote.

    Raises:
        UserError: the file is missing, no benchmark's, or holds neither a training step nor the loop.
    """
    remedy = f"write one with: pytest benchmarks/ --benchmark-only --benchmark-json {path}"
    content = read_json(path, BenchmarkFile, remedy)
    if content is None:
        raise UserError(f"there is no file {path}; {remedy}")
    noted: list[tuple[Noted, Stats]] = []
    for i, entry in enumerate(content.benchmarks):
        if shape := KINDS.get(entry.extra_info.get("kind", "")):
            where = f"{path}: benchmarks.{i}.extra_info"
            noted.append((shaped(entry.extra_info, shape, where, remedy), entry.stats))
    loops = [facts for facts, _ in noted if isinstance(facts, Loop)]
    memories = [facts for facts, _ in noted if isinstance(facts, GroupMemory)]
    measurements = Measurements(_pairs(noted), loops, memories)
    if not measurements.pairs and not measurements.loops:
        raise UserError(f"{path} holds no training step; {remedy}")
    return measurements


def _pairs(noted: Sequence[tuple[Noted, Stats]]) -> Pairs:
    inference: dict[tuple[str, str], dict[int, Inference]] = {}
    for facts, stats in noted:
        if isinstance(facts, Inference):
            measured = facts.model_copy(update={"seconds": stats.median})
            inference.setdefault((facts.pair, facts.method), {})[facts.batch_size] = measured
    pairs: Pairs = {}
    for facts, stats in noted:
        if isinstance(facts, TrainingStep):
            # What deploys the plain student has no measurement of its own.
            deployed = inference.get((facts.pair, facts.method)) or inference.get((facts.pair, "student"), {})
            turns = _turns(facts, stats.min)
            pairs.setdefault(facts.pair, {})[facts.method] = MeasuredMethod(facts, turns, deployed)
    return pairs


def _turns(facts: TrainingStep, fastest: float) -> list[tuple[float, float]]:
    """Seconds of KD's step and of the method's; files of earlier versions have the best of each alone."""
    if facts.turns:
        return facts.turns
    beside = 1.0 if facts.method == REFERENCE else facts.times_reference or 1.0
    return [(beside * fastest, fastest)]


def reference_seconds(methods: Mapping[str, MeasuredMethod]) -> float:
    """Seconds of KD's step: the median of all that were made beside the methods of a pair."""
    return median(kd for measured in methods.values() for kd, _ in measured.turns)


def write(
    measurements: Measurements, folder: Path, accuracy: Path | None = None, say: Callable[[str], None] = say
) -> list[Path]:
    """Write table6-PAIR and table6-loop as .tex and .md, and plots, into ``folder``, each whole or not at all.

    Args:
        measurements: what :func:`read` gave.
        folder: where to.
        accuracy: a table's .csv; then accuracy is plotted against cost for the pairs that it has.
        say: called with a line for a pair that it has not.
    """
    files = write_layout(loop.layout(measurements.loops, measurements.memories), folder) if measurements.loops else []
    for pair, methods in measurements.pairs.items():
        files += write_layout(layout(pair, methods), folder)
        means = accuracies(accuracy, pair, methods) if accuracy else {}
        if accuracy and not means:
            say(f"no plot of accuracy against cost: {accuracy} has no accuracy of what was measured on {pair}")
        files += _figures(methods, folder / f"table6-{pair}", means)
    return files


def _figures(methods: Mapping[str, MeasuredMethod], path: Path, means: Mapping[str, float]) -> list[Path]:
    from .figures import cost_figures
    from .figures import drawing as figures

    kd = reference_seconds(methods)
    costs = {
        name: cost_figures.MethodCost(m.title, kd / m.ratio, m.shares, m.facts.memory.by_part.model_dump())
        for name, m in methods.items()
    }
    kind = next(iter(methods.values())).facts.memory.kind
    drawn = {"split": cost_figures.sections(costs), "memory": cost_figures.memory(costs, kind)}
    if means:
        points = {costs[name].title: (1e3 * costs[name].seconds, mean) for name, mean in means.items()}
        drawn["accuracy"] = cost_figures.accuracy(points, "ms of a training step", "last-epoch mean")
    return [file for name, fig in drawn.items() for file in figures.write(fig, path.with_name(f"{path.name}-{name}"))]


HEADS = (
    ("Training", "images/s"),
    ("", f"{TIMES} KD"),
    *((section.capitalize(), "%") for section in SECTIONS),
    ("Peak", "MiB"),
    ("Params", "training"),
    ("", "deployed"),
    ("GFLOP", "per step"),
    ("Inference", "ms, b 1"),
    ("", "images/s, b 256"),
    ("", "MMAC"),
)


def layout(pair: str, methods: Mapping[str, MeasuredMethod]) -> TableLayout:
    """All figures of one pair, one line per method."""
    lines: list[Line] = []
    kd = reference_seconds(methods)
    family = ""
    for measured in methods.values():
        if measured.facts.family != family:
            family = measured.facts.family
            lines.append(Line("heading", family))
        lines.append(Line("row", measured.title, _cells(measured, kd)))
    first = next(iter(methods.values()))
    facts, machine = first.facts, first.facts.machine
    phased = [m.facts.title for m in methods.values() if m.facts.first_phases]
    notes = [
        (
            f"{TIMES} KD",
            "each step is timed after one of KD: the median of the turns' ratios ± half their range; images/s is this "
            "multiple of KD's, which is of the median step of KD over all turns."
            + ("" if any(m.spread is not None for m in methods.values()) else " Of the turns only the best was kept."),
        ),
        (
            "Data to optimiser",
            "shares of a step whose sections were awaited one by one, rounded so that they add up to 100.",
        ),
        ("Params", f"beside the student's {count(facts.student_params)}, in training and in what is deployed."),
        ("GFLOP per step", "convolutions and matrix products, forward and backward, the teacher's pass included."),
        ("Memory", f"{facts.memory.kind}, in a process of its own."),
        *([("Without their first phases", ", ".join(phased) + ".")] if phased else []),
        ("Machine", f"{machine.machine}, torch {machine.versions.torch}, commit {machine.commit}."),
    ]
    teacher, _, student = pair.partition("-")
    return TableLayout(
        name=f"table6-{pair}",
        title=f"What a method costs: {network_title(teacher)} to {network_title(student)}",
        caption=(
            Sentence(
                f"Training step of each method alone, batch {facts.batch_size}, fp32, on images of "
                "CIFAR-100's shape without content."
            ),
        ),
        blocks=(tuple(lines),),
        notes=tuple(notes),
        heads=(("", tuple(head for head, _ in HEADS)), ("Method", tuple(unit for _, unit in HEADS))),
    )


def percentages(shares: Mapping[str, float]) -> dict[str, int]:
    """Shares in whole percent that add up to 100: what is left by rounding down goes to the largest remainders."""
    whole = {name: int(100 * share) for name, share in shares.items()}
    by_rest = sorted(shares, key=lambda name: whole[name] - 100 * shares[name])
    return whole | {name: whole[name] + 1 for name in by_rest[: 100 - sum(whole.values())]}


def _cells(measured: MeasuredMethod, kd: float) -> tuple[PrintedCell, ...]:
    facts, shares, spread = measured.facts, percentages(measured.shares), measured.spread
    peak = facts.memory.bytes
    small, large = measured.inference.get(1), measured.inference.get(256)
    operations = (facts.teacher_operations + facts.own_operations) / 1e9
    return (
        PrintedCell(f"{facts.batch_size / kd * measured.ratio:.0f}"),
        PrintedCell(f"{measured.ratio:.2f}", "" if spread is None else f"{spread:.2f}"),
        *(PrintedCell(str(shares[section])) for section in SECTIONS),
        _figure(None if peak is None else peak / MIB, "{:.0f}"),
        PrintedCell(count(facts.extra_train_params)),
        PrintedCell(count(facts.extra_inference_params)),
        PrintedCell(f"{operations:.1f}"),
        _figure(1e3 * small.seconds if small else None, "{:.2f}"),
        _figure(256 / large.seconds if large else None, "{:.0f}"),
        _figure(small.macs / 1e6 if small else None, "{:.1f}"),
    )


def _figure(value: float | None, form: str) -> PrintedCell:
    return PrintedCell(word=MISSING) if value is None else PrintedCell(form.format(value))


def accuracies(file: Path, pair: str, methods: Mapping[str, MeasuredMethod]) -> dict[str, float]:
    """Last-epoch means of a pair by method, from a table's .csv.

    Raises:
        UserError: the file cannot be read or is no table's.
    """
    lines = read_csv(file, _Mean, "give a table's .csv: results/tables/…/NAME.csv")
    return {
        line.row: line.mean_last
        for line in lines
        if line.pair == pair and line.row in methods and line.mean_last is not None
    }


class _Mean(BaseModel):
    """Of a table's .csv what is plotted."""

    row: str
    pair: str
    mean_last: float | None = None
