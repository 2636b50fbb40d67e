"""Plots as PNG bytes: the same input gives the same bytes."""

from __future__ import annotations

import io
from typing import Any


def figure(title: str, columns: int = 1) -> tuple[Any, Any]:
    """A figure with one row of axes; the axes themselves where there is one column."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(3.2 + 3.6 * columns, 4.2), layout="constrained")
    FigureCanvasAgg(fig)
    fig.suptitle(title, fontsize=10)
    axes = fig.subplots(1, columns)
    for one in axes if columns > 1 else (axes,):
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    return fig, axes


def png(fig: Any) -> bytes:
    """A figure as PNG, without the date and version that matplotlib would write into it."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
