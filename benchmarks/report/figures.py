"""Plots as PNG bytes: the same input gives the same bytes."""

from __future__ import annotations

import io
from typing import Any


def figure(title: str, columns: int = 1, rows: float = 1) -> tuple[Any, Any]:
    """A figure, and its axes by row and column."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = 6.8 if columns == 1 else 3.4 * columns
    fig = Figure(figsize=(width, 1.2 + 3.0 * rows), layout="constrained")
    FigureCanvasAgg(fig)
    fig.suptitle(title, fontsize=10)
    axes = fig.subplots(max(1, int(rows)) if columns > 1 else 1, columns, squeeze=False)
    for one in axes.flat:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    return fig, axes


def png(fig: Any) -> bytes:
    """A figure as PNG, without the version that matplotlib would write into it."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
