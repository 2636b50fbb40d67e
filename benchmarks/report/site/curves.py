"""Training curves as SVG that stands inside a page and takes its colours: the same input gives the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..figures import drawing as figures
from ..seed_statistics import mean_curve, whole

COLOURS = figures.COLOURS[1:7]
"""Without the black, which a dark page hides, and the grey, which means something else here."""

INK = "#010203"
"""What stands for the colour of the page's text until the SVG is written."""

POINTS = 120
"""Most points of a line in a small drawing."""


@dataclass(frozen=True)
class MethodCurves:
    """The metric after each epoch, of a row's seeds on one pair. A reference is drawn in the text's colour."""

    title: str
    seeds: tuple[tuple[float, ...], ...]
    reference: bool = False

    @property
    def mean(self) -> list[float]:
        """Over the seeds that went through as many epochs as the longest."""
        return mean_curve(self.seeds)


def drawing(methods: Sequence[MethodCurves], metric: str, salt: str) -> str:
    """The mean curve of each method with the range of its seeds; '' where nothing has two epochs.

    The references and the best of the others at the last epoch have colours and names, the rest are grey.

    Args:
        methods: the rows.
        metric: the y axis in words.
        salt: another one for each drawing of a page, as the SVG's ids are made of it.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    drawn = [method for method in methods if len(method.mean) > 1]
    if not drawn:
        return ""
    others = sorted((m for m in drawn if not m.reference), key=lambda m: m.mean[-1], reverse=True)
    named = [*(m for m in drawn if m.reference), *others[: len(COLOURS)]]
    style = {
        "svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }  # fmt: skip
    with mpl.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(6.4, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for method in others[len(COLOURS) :]:
            axes.plot(range(1, len(method.mean) + 1), method.mean, color="#8C8C8C", alpha=0.4, linewidth=0.6)
        colours = iter(COLOURS)
        for method in named:
            colour, epochs = INK if method.reference else next(colours), range(1, len(method.mean) + 1)
            line = "--" if method.reference else "-"
            axes.plot(epochs, method.mean, line, color=colour, linewidth=1.4, label=figures.plain(method.title))
            if len(seeds := whole(method.seeds)) > 1:
                low, high = zip(*((min(values), max(values)) for values in zip(*seeds, strict=True)), strict=True)
                axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel(figures.plain(metric))
        axes.grid(alpha=0.25)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0)
        buffer = io.BytesIO()
        facts = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=facts)
    return _inline(buffer.getvalue().decode())


def _inline(text: str) -> str:
    """An SVG file as a part of a page: without head, metadata and names of its groups, in the page's colours."""
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", text)  # what is left are hashes, which other parts refer to
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg role="img" \1>', text, count=1)
    return text.replace(INK, "currentColor")


def line(curve: Sequence[float], epochs: int, bounds: tuple[float, float], size: tuple[float, float]) -> str:
    """A curve as the points of a polyline, ``epochs`` over the width, ``bounds`` over the height; of many some."""
    (low, high), (width, height), count = bounds, size, min(len(curve), POINTS)
    last = max(epochs - 1, 1)
    picked = [i * (len(curve) - 1) // max(count - 1, 1) for i in range(count)]
    return " ".join(
        f"{i / last * width:.1f},{height * (1 - (curve[i] - low) / ((high - low) or 1.0)):.1f}" for i in picked
    )


def small(curves: Mapping[int, Sequence[float]], size: tuple[float, float] = (300, 70)) -> dict[str, object]:
    """The curves of a place's seeds for a small drawing of ``size``: a polyline for each, their bounds and epochs."""
    known = {seed: curve for seed, curve in curves.items() if curve}
    values = [value for curve in known.values() for value in curve]
    if not values:
        return {}
    bounds = min(values), max(values)
    epochs = max(map(len, known.values()))
    lines = {seed: line(curve, epochs, bounds, size) for seed, curve in known.items()}
    return {"lines": lines, "low": bounds[0], "high": bounds[1], "epochs": epochs, "size": size}
