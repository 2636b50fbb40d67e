"""The cost table and its plots, from a file that ``pytest benchmarks/ --benchmark-json FILE`` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kd_methods.errors import UserError

from ..common.files import read_csv, read_json, shaped, write_bytes
from . import loop_table as loop
from . import write_layout
from .cost_table import MIB, count
from .facts import KINDS, BenchmarkEntry, BenchmarkFile
from .model import PARTS
from .table_layout import MISSING, TIMES, Line, PrintedCell, Sentence, TableLayout

REFERENCE = "kd"
NAMED = 6
"""Methods that the memory plot names beside student and KD: those that need most."""


@dataclass(frozen=True)
class MeasuredMethod:
    """One method on one pair: facts of its training step, and by batch size those of its inference."""

    facts: Mapping[str, Any]
    seconds: float
    inference: Mapping[int, Mapping[str, Any]]


Pairs = dict[str, dict[str, MeasuredMethod]]
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Measurements:
    """What a file holds: methods by pair, and the facts of the loop and of groups' memory, in the order of the file."""

    pairs: Pairs
    loops: Sequence[Facts]
    memories: Sequence[Facts]


def read(path: Path) -> Measurements:
    """What the benchmark suites wrote.

    Raises:
        UserError: the file is missing, no benchmark's, or holds neither a training step nor the loop.
    """
    remedy = f"write one with: pytest benchmarks/ --benchmark-only --benchmark-json {path}"
    content = read_json(path, BenchmarkFile, remedy)
    if content is None:
        raise UserError(f"there is no file {path}; {remedy}")
    entries: list[BenchmarkEntry] = content.benchmarks
    for i, entry in enumerate(entries):
        if shape := KINDS.get(entry.extra_info.get("kind", "")):
            shaped(entry.extra_info, shape, f"{path}: benchmarks.{i}.extra_info", remedy)
    loops, memories = (
        [entry.extra_info for entry in entries if entry.extra_info.get("kind") == kind]
        for kind in ("loop", "group memory")
    )
    measurements = Measurements(_pairs(entries), loops, memories)
    if not measurements.pairs and not measurements.loops:
        raise UserError(f"{path} holds no training step; {remedy}")
    return measurements


def _pairs(entries: list[BenchmarkEntry]) -> Pairs:
    inference: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for entry in entries:
        facts = entry.extra_info
        if facts.get("kind") == "inference":
            seconds = {"seconds": entry.stats.median}
            inference.setdefault((facts["pair"], facts["method"]), {})[facts["batch_size"]] = facts | seconds
    pairs: Pairs = {}
    for entry in entries:
        facts = entry.extra_info
        if facts.get("kind") == "training step":
            pair, method = facts["pair"], facts["method"]
            # What deploys the plain student has no measurement of its own.
            deployed = inference.get((pair, method)) or inference.get((pair, "student"), {})
            pairs.setdefault(pair, {})[method] = MeasuredMethod(facts, entry.stats.median, deployed)
    return pairs


def write(measurements: Measurements, folder: Path, accuracy: Path | None = None) -> list[Path]:
    """Write table6-PAIR and table6-loop as .tex and .md, and plots, into ``folder``, each whole or not at all.

    Args:
        measurements: what :func:`read` gave.
        folder: where to.
        accuracy: a table's .csv; then accuracy is plotted against cost for the pairs that it has.
    """
    files = write_layout(loop.layout(measurements.loops, measurements.memories), folder) if measurements.loops else []
    for pair, methods in measurements.pairs.items():
        files += write_layout(layout(pair, methods), folder)
        stem = folder / f"table6-{pair}"
        pictures = {"-split.png": _split_plot(pair, methods), "-memory.png": _memory_plot(pair, methods)}
        if accuracy and (points := accuracies(accuracy, pair, methods)):
            pictures["-accuracy.png"] = _accuracy_plot(pair, methods, points)
        for suffix, picture in pictures.items():
            files.append(stem.with_name(stem.name + suffix))
            write_bytes(files[-1], picture)
    return files


HEADS = (
    ("Training", "images/s"),
    ("", f"{TIMES} KD"),
    *((part.capitalize(), "%") for part in PARTS),
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
    family = ""
    for name, measured in methods.items():
        if measured.facts["family"] != family:
            family = measured.facts["family"]
            lines.append(Line("heading", family))
        lines.append(Line("row", measured.facts["title"] if name != "student" else "Student", _cells(measured)))
    first = next(iter(methods.values()))
    facts, machine = first.facts, first.facts["machine"]
    phased = [m.facts["title"] for m in methods.values() if m.facts["first_phases"]]
    notes = [
        (
            f"{TIMES} KD",
            "throughput as a multiple of KD's, from the best of steps in turn; images/s are of the median step.",
        ),
        ("Data to optimiser", "shares of a step whose parts were awaited one by one; the images/s are of whole steps."),
        ("Params", f"beside the student's {count(facts['student_params'])}, in training and in what is deployed."),
        ("GFLOP per step", "convolutions and matrix products, forward and backward, the teacher's pass included."),
        ("Memory", f"{facts['memory']['kind']}, in a process of its own."),
        *([("Without their first phases", ", ".join(phased) + ".")] if phased else []),
        ("Machine", f"{machine['machine']}, torch {machine['versions']['torch']}, commit {machine['commit']}."),
    ]
    teacher, _, student = pair.partition("-")
    return TableLayout(
        name=f"table6-{pair}",
        title=f"What a method costs: {teacher} to {student}",
        caption=(
            Sentence(
                f"Median training step of each method alone, batch {facts['batch_size']}, fp32, on images of "
                "CIFAR-100's shape without content."
            ),
        ),
        blocks=(tuple(lines),),
        notes=tuple(notes),
        heads=(("", tuple(head for head, _ in HEADS)), ("Method", tuple(unit for _, unit in HEADS))),
    )


def _cells(measured: MeasuredMethod) -> tuple[PrintedCell, ...]:
    facts, split = measured.facts, measured.facts["split"]
    total = sum(split.values())
    rate = facts["batch_size"] / measured.seconds
    peak = facts["memory"]["bytes"]
    small, large = measured.inference.get(1), measured.inference.get(256)
    operations = (facts["teacher_operations"] + facts["own_operations"]) / 1e9
    return (
        PrintedCell(f"{rate:.0f}"),
        PrintedCell(f"{facts['times_reference']:.2f}"),
        *(PrintedCell(f"{100 * split[part] / total:.0f}") for part in PARTS),
        _figure(None if peak is None else peak / MIB, "{:.0f}"),
        PrintedCell(count(facts["extra_train_params"])),
        PrintedCell(count(facts["extra_inference_params"])),
        PrintedCell(f"{operations:.1f}"),
        _figure(1e3 * small["seconds"] if small else None, "{:.2f}"),
        _figure(256 / large["seconds"] if large else None, "{:.0f}"),
        _figure(small["macs"] / 1e6 if small else None, "{:.1f}"),
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


def _split_plot(pair: str, methods: Mapping[str, MeasuredMethod]) -> bytes:
    from .figures import figure, png

    fig, ((axes,),) = figure(f"Milliseconds of a training step by part: {pair}", rows=max(1.4, len(methods) / 15))
    left = [0.0] * len(methods)
    for part in PARTS:
        values = [1e3 * measured.facts["split"][part] for measured in methods.values()]
        axes.barh(list(methods), values, left=left, label=part)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("ms")
    axes.legend(fontsize=7, ncols=3, loc="lower right")
    return png(fig)


def _memory_plot(pair: str, methods: Mapping[str, MeasuredMethod]) -> bytes:
    from .figures import figure, png

    fig, ((axes,),) = figure(f"Peak memory within each part of a step: {pair}", rows=1.4)
    curves = {name: [measured.facts["memory"]["by_part"][part] for part in PARTS] for name, measured in methods.items()}
    curves = {name: [value / MIB for value in values] for name, values in curves.items() if None not in values}
    highest = sorted(curves, key=lambda name: max(curves[name]))[-NAMED:]
    for name, values in curves.items():
        bold = name in ("student", REFERENCE, *highest)
        shade = {"label": name} if bold else {"color": "grey", "alpha": 0.4, "linewidth": 0.8}
        axes.plot(PARTS, values, marker=".", **shade)
    axes.set_ylabel("MiB above the idle process")
    axes.legend(fontsize=7)
    return png(fig)


def _accuracy_plot(pair: str, methods: Mapping[str, MeasuredMethod], points: Mapping[str, float]) -> bytes:
    from .figures import figure, png

    fig, ((axes,),) = figure(f"Accuracy against cost: {pair}", rows=1.4)
    for name, value in points.items():
        cost = 1e3 * methods[name].seconds
        axes.scatter(cost, value, color="black", s=12)
        axes.annotate(name, (cost, value), fontsize=6, xytext=(3, 2), textcoords="offset points")
    axes.set_xlabel("ms per training step")
    axes.set_ylabel("top-1 accuracy (%), last epoch")
    return png(fig)
