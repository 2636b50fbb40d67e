"""The loop's table: beside the baseline, beside what the machine can do, and the memory of a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from ..facts import GroupMemory, Held, Loop
from ..table_layout import MISSING, TIMES, Line, PrintedCell, Sentence, TableLayout
from .cost_table import MIB

NAME = "table6-loop"
COMPILED = "compiled code"

NAMED = 6
"""Operators that are named beside a pair."""

HEADS = (
    ("Baseline", "ms"),
    ("Alone", "ms"),
    ("", TIMES),
    ("Group", "ms per cell"),
    ("", TIMES),
    ("Arithmetic", "GFLOP"),
    ("", "% of fastest"),
    ("Group's memory", "MiB"),
    ("", "% of bound"),
)


def layout(loops: Sequence[Loop], memories: Sequence[GroupMemory]) -> TableLayout:
    """One line for each pair and precision.

    Args:
        loops: the facts that ``benchmarks/suites/test_loop.py`` noted of the loop, at least one.
        memories: and of groups' memory.
    """
    held = {(facts.pair, tuple(facts.group)): facts.bytes for facts in memories}
    first, machine = loops[0], loops[0].machine
    processes, method, group = first.loader_processes, first.method, first.group
    notes = [
        (
            "Baseline",
            f"the field's usual loop in fp32: PIL and a DataLoader ({processes} processes), NCHW, eager, one {method} "
            "cell with its teacher.",
        ),
        (TIMES, "the baseline's time as a multiple of ours, median of turns (least to greatest)."),
        ("Alone", f"the same {method} cell in our loop."),
        (
            "Group",
            f"{len(group)} cells that share the teacher's pass: {', '.join(group)}; time divided by their number.",
        ),
        (
            "Arithmetic",
            "the teacher's pass and three of the student's, of the step alone; the fastest is the best large matrix "
            "product or convolution in fp32, measured in every turn.",
        ),
        (
            "Bound",
            "the teacher with its kept outputs, weights, gradients, optimiser state and method modules of all cells, "
            "and the activations of one student.",
        ),
        *((_label(facts), f"a step's time: {_operators(facts.operators)}.") for facts in loops),
        ("Machine", f"{machine.machine}, torch {machine.versions.torch}, commit {machine.commit}."),
    ]
    lines = tuple(Line("row", _label(facts), _cells(facts, held)) for facts in loops)
    return TableLayout(
        name=NAME,
        title="The training loop beside the field's usual one",
        caption=(
            Sentence(
                f"Time of a training step of one cell on task {first.task}, batch {first.batch_size}; the three "
                "loops take turns."
            ),
        ),
        blocks=(lines,),
        notes=tuple(notes),
        heads=(("", tuple(head for head, _ in HEADS)), ("Pair", tuple(unit for _, unit in HEADS))),
    )


def _label(facts: Loop) -> str:
    compiled = ", compiled" if facts.compiled else ""
    return f"{facts.pair}, {facts.precision}{compiled}"


def by_operator(shares: Mapping[str, float]) -> dict[str, float]:
    """Shares of time by operator, the largest first; what a compiler made and named by itself is one entry."""
    joined: dict[str, float] = {}
    for name, share in shares.items():
        operator = name if "::" in name else COMPILED
        joined[operator] = joined.get(operator, 0.0) + share
    return dict(sorted(joined.items(), key=lambda item: -item[1]))


def _operators(shares: Mapping[str, float]) -> str:
    named = list(by_operator(shares).items())[:NAMED]
    return ", ".join(f"{name.removeprefix('aten::')} {100 * share:.0f} %" for name, share in named)


def _cells(facts: Loop, held: Mapping[tuple[str, tuple[str, ...]], Held]) -> tuple[PrintedCell, ...]:
    def milliseconds(seconds: Iterable[float]) -> PrintedCell:
        return PrintedCell(f"{1e3 * median(seconds):.0f}")

    def times(ratios: tuple[float, float, float]) -> PrintedCell:
        least, middle, greatest = ratios
        return PrintedCell(f"{middle:.2f}", aside=f"{least:.2f} to {greatest:.2f}")

    usual = facts.precision == "fp32" and not facts.compiled  # memory is measured so
    memory = held.get((facts.pair, tuple(facts.group))) if usual else None
    return (
        milliseconds(turn.baseline for turn in facts.turns),
        milliseconds(turn.alone for turn in facts.turns),
        times(facts.ratios.alone),
        milliseconds(turn.group for turn in facts.turns),
        times(facts.ratios.group),
        PrintedCell(f"{facts.operations / 1e9:.1f}"),
        PrintedCell(f"{100 * facts.share_of_fastest[1]:.0f}"),
        PrintedCell(f"{memory.peak / MIB:.0f}") if memory else PrintedCell(word=MISSING),
        PrintedCell(f"{100 * memory.peak / memory.bound:.0f}") if memory else PrintedCell(word=MISSING),
    )
