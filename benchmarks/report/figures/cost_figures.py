"""Figures of what methods cost on a pair: sections of a step, memory within them, accuracy against cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..layouts.cost_table import MIB
from ..model import SECTIONS
from .drawing import COLOURS, DOT, above, beside, figure, filled, look, named, pareto

NAMED = 6
"""Methods that the figure of memory names beside student and KD: those that need most."""


@dataclass(frozen=True)
class MethodCost:
    """A method's title, seconds of a step and the shares of its sections, and bytes at its peak within each."""

    title: str
    seconds: float
    shares: Mapping[str, float]
    memory: Mapping[str, float | None]


Costs = Mapping[str, MethodCost]


def sections(costs: Costs) -> Any:
    """Milliseconds of a step, by section; a bar is as long as the step that the table gives."""
    fig, (axes,) = figure(height=0.9 + 0.115 * len(costs))
    left = [0.0] * len(costs)
    titles = [cost.title for cost in costs.values()]
    for i, section in enumerate(SECTIONS):
        values = [1e3 * cost.seconds * cost.shares[section] for cost in costs.values()]
        axes.barh(titles, values, left=left, label=section, **filled(i))
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.tick_params(axis="y", labelsize=5.5, length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("ms of a training step")
    above(axes, 3)
    return fig


def memory(costs: Costs, kind: str) -> Any:
    """The peak within each section, the methods that need most by name; sections are categories and are not joined."""
    known = {name: cost for name, cost in costs.items() if None not in cost.memory.values()}
    highest = sorted(known, key=lambda name: max(v for v in known[name].memory.values() if v is not None))[-NAMED:]
    fig, (axes,) = figure(height=2.3)
    shown = [name for name in known if name in ("student", "kd", *highest)]
    for name, cost in known.items():
        values = [(cost.memory[section] or 0.0) / MIB for section in SECTIONS]
        if name not in shown:
            axes.plot(range(len(SECTIONS)), values, "_", color="0.75", markersize=8, zorder=1)
            continue
        i = shown.index(name)
        offset = 0.6 * (i / max(1, len(shown) - 1) - 0.5)
        axes.plot([x + offset for x in range(len(SECTIONS))], values, label=cost.title, **look(i) | {"linestyle": ""})
    axes.set_xticks(range(len(SECTIONS)), SECTIONS, rotation=35, ha="right")
    axes.set_ylabel(f"peak, MiB ({kind})", fontsize=6)
    beside(axes)
    return fig


def accuracy(points: Mapping[str, tuple[float, float]], unit: str, metric: str, cheaper: int = 1) -> Any:
    """Accuracy against cost by title, with the line of those that no other is cheaper and better than.

    Args:
        points: (cost, accuracy).
        unit: of the cost.
        metric: of the accuracy.
        cheaper: 1 where a small cost is a good one, -1 where it is throughput.
    """
    fig, (axes,) = figure(height=2.6)
    front = [(cheaper * x, y) for x, y in pareto([(cheaper * x, y) for x, y in points.values()])]
    line = {"color": COLOURS[2], "label": "Pareto front", "zorder": 1}
    axes.step([x for x, _ in front], [y for _, y in front], where="post", **line)
    dot = {"markersize": DOT, "zorder": 2}
    for x, y in points.values():
        on = (x, y) in front
        axes.plot(x, y, "o", color=COLOURS[2] if on else COLOURS[0], fillstyle="full" if on else "none", **dot)
    axes.margins(0.12)
    axes.set_xlabel(unit)
    axes.set_ylabel(metric)
    above(axes)
    named(axes, points)
    return fig
