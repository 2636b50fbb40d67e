"""Figures for one column of a paper, as PDF and PNG: the same input gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.files import write_bytes

WIDTH = 3.3
"""Of a figure in inches: a column of the usual classes."""

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Okabe and Ito's, told apart by the colour-blind; in grey print, lines, markers and hatches tell them apart."""

LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (5, 3)))
MARKERS = "os^Dv<>P"
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----", "++++", "oooo")

DOT = 3.0
"""Size of a marker, in points."""

_STYLE = {
    "font.size": 7, "axes.titlesize": 7, "axes.labelsize": 7, "xtick.labelsize": 6.5, "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.3, "grid.linewidth": 0.4, "axes.linewidth": 0.6, "lines.linewidth": 1.0, "lines.markersize": 3.5,
    "pdf.fonttype": 42, "svg.hashsalt": "", "hatch.linewidth": 0.4, "legend.frameon": False,
}  # fmt: skip


def figure(panels: int = 1, height: float = 2.2, across: int = 1) -> tuple[Any, list[Any]]:
    """A figure of one column, and the axes of its panels, row by row.

    Args:
        panels: how many rows of them.
        height: of each, in inches.
        across: how many stand side by side.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        fig = Figure(figsize=(WIDTH, height * panels), layout="constrained")
        FigureCanvasAgg(fig)
        axes = fig.subplots(panels, across, squeeze=False, sharex=across > 1)
    return fig, list(axes.flat)


def plain(text: str) -> str:
    """Text that matplotlib neither takes for mathematics nor leaves out of a legend."""
    return " ".join(text.split()).replace("$", r"\$").lstrip("_")


def look(i: int) -> dict[str, Any]:
    """Colour, line and marker of the i-th thing of a figure."""
    line, marker = LINES[(i + i // 8) % 8], MARKERS[(i + 2 * (i // 8)) % 8]
    return {"color": COLOURS[i % 8], "linestyle": line, "marker": marker, "markersize": DOT, "linewidth": 1.0}


def filled(i: int) -> dict[str, Any]:
    """Colour and hatch of the i-th part of a bar."""
    return {"color": COLOURS[(i + 1) % 8], "hatch": HATCHES[i % 8], "edgecolor": "white", "linewidth": 0.2}


def beside(axes: Any) -> None:
    """The legend right of the data, where it covers nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0, handlelength=2.4,
                fontsize=6.5, frameon=False)  # fmt: skip


def above(axes: Any, columns: int = 3) -> None:
    """The legend over the data's upper edge, outside of it."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=columns, borderaxespad=0, handlelength=1.6,
                columnspacing=1.0, fontsize=6.5, frameon=False)  # fmt: skip


def named(axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """A name at each point, moved up or down where it would lie on another."""
    axes.figure.draw_without_rendering()  # so that the points have their places
    renderer = axes.figure.canvas.get_renderer()
    taken: list[Any] = []
    for name, (x, y) in sorted(points.items(), key=lambda item: (item[1], item[0])):
        for dx, dy in ((4, 2), (4, -7), (-4, 2), (-4, -7), *((4, 2 + 6 * k) for k in range(1, 12))):
            text = axes.annotate(name, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=5.5,
                                 ha="left" if dx > 0 else "right")  # fmt: skip
            box = text.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            continue
        taken.append(box)


def legend_of_all(fig: Any, axes: Any, columns: int = 3) -> None:
    """One legend for all panels, below them."""
    fig.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize=6.5,
               frameon=False, handlelength=2.4)  # fmt: skip


def png(fig: Any) -> bytes:
    """A figure as PNG, without the version that matplotlib would write into it."""
    return _saved(fig, "png", {"Software": None}, dpi=300)


def pdf(fig: Any) -> bytes:
    """A figure as PDF with its fonts, without dates."""
    return _saved(fig, "pdf", {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None})


def _saved(fig: Any, kind: str, metadata: Mapping[str, None], **options: Any) -> bytes:
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        fig.savefig(buffer, format=kind, metadata=metadata, **options)
    return buffer.getvalue()


def write(fig: Any, path: Path) -> list[Path]:
    """Write ``path`` with .pdf and .png behind it, each whole or not at all, and return their paths."""
    files = []
    for suffix, content in ((".pdf", pdf(fig)), (".png", png(fig))):
        files.append(path.with_name(path.name + suffix))
        write_bytes(files[-1], content)
    return files


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, gain) that no other is cheaper and better than, by cost."""
    front: list[tuple[float, float]] = []
    for cost, gain in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or gain > front[-1][1]:
            front.append((cost, gain))
    return front
