"""How alike the blocks of student and teacher are, over training: what Block-KD claims to bring about unasked.

Two measures on the same test images, block by block: linear CKA, which sees the geometry of the samples and no
connector; and the distance through the best linear connector (a 1x1 convolution with bias, by least squares), as the
share of the teacher's variance that it leaves. Fitting one makes methods with and without a connector comparable; it is
fitted to every second image and measured on the others, so that wide blocks are not alike by overfitting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_methods.analysis.locations import rows
from kd_methods.contract import Network
from kd_methods.functional.feature import same_size

from ..common.console import say
from ..common.files import csv_text, write_text
from ..networks import NetworkView
from ..store.manifest.shapes import Manifest
from ..store.runs import Store
from ..tasks import TaskData
from ..tasks.images import Normalisation
from ..training.isolation import copied

IMAGES = 500
MEASURES = {
    "cka": "linear CKA",
    "unseen_distance": "distance through a linear connector, on images it was not fitted to",
}
"""What is recorded, and how figures call it."""


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of features (n, p) and (n, q); Kornblith et al. 2019, equation 3."""
    grams = [features.double() @ features.double().t() for features in (x, y)]
    a, b = (gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean() for gram in grams)
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-300))


def connector_distance(x: Tensor, y: Tensor, images: int) -> float:
    """Share of the variance of y (n, q) that an affine map of x (n, p) leaves on images that it was not fitted to.

    It is fitted to every second of the ``images`` that the rows are of, as many of each; 1 and more is no better than
    their mean. A ridge of as many times the channels' mean variance as there are channels, next to nothing beside many
    rows, keeps the fit from following noise where there are few.
    """
    fitted = torch.arange(images, device=x.device).repeat_interleave(len(x) // images) % 2 == 0
    means = [features.double()[fitted].mean(0) for features in (x, y)]
    x, y = (features.double() - mean for features, mean in zip((x, y), means, strict=True))
    gram = x[fitted].t() @ x[fitted]
    gram.diagonal().add_(gram.diagonal().sum() / fitted.sum() + 1e-300)
    left = y[~fitted] - x[~fitted] @ torch.linalg.solve(gram, x[fitted].t() @ y[fitted])
    return float(left.pow(2).sum() / y[~fitted].pow(2).sum().clamp_min(1e-300))


class BlockSimilarity:
    """Measures a student against the teacher on the first test images.

    Args:
        teacher: the frozen teacher.
        normalisation: how it wants its inputs.
        data: the task's data.
    """

    def __init__(self, teacher: NetworkView, normalisation: Normalisation, data: TaskData) -> None:
        self.data = data
        batch = data.clean(torch.arange(min(IMAGES, data.test_samples)), test=True)
        with torch.no_grad():
            self.theirs = teacher.fold_batch_norms()(batch.inputs(normalisation), fields=("blocks",)).blocks
        self.inputs = batch.student().inputs

    def __call__(self, student: Network) -> dict[str, list[float]]:
        """Each measure by block, from the first to the last that both networks have."""
        with torch.no_grad():
            ours = student(copied(self.inputs), fields=("blocks",)).blocks
        count = min(len(ours), len(self.theirs))
        pairs = list(zip(ours[-count:], self.theirs[-count:], strict=True))
        distances = [connector_distance(rows(a), rows(b), len(a)) for a, b in (_alike(s, t) for s, t in pairs)]
        return {
            "cka": [linear_cka(s.flatten(1), t.flatten(1)) for s, t in pairs],
            "unseen_distance": distances,
        }


def _alike(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    if s.dim() == t.dim() == 4:
        return same_size(s, t)
    if s.dim() == t.dim() == 3 and s.shape[1] == t.shape[1]:
        return s, t
    # Tokens beside a map or another number of tokens: their means are all that corresponds.
    return tuple(x.mean(1, keepdim=True) if x.dim() == 3 else F.adaptive_avg_pool2d(x, 1) for x in (s, t))  # type: ignore[return-value]


Curves = dict[str, dict[int, dict[str, list[float]]]]
"""Measures by title of the row and by epoch."""


def collect(manifest: Manifest, store: Store, column: str, say: Callable[[str], None] = say) -> Curves:
    """The measures after every epoch that all seeds with measurements have, mean over those."""
    curves: Curves = {}
    for row in manifest.rows:
        runs = []
        for cell in manifest.cells:
            if (cell.row, cell.column) == (row.key, column):
                metrics = store.metrics(cell.key, say)
                every = {r["epoch"]: r.get("similarity") or {} for r in metrics}  # earlier versions measured otherwise
                records = {epoch: measured for epoch, measured in every.items() if measured.keys() >= MEASURES.keys()}
                runs += [records] if records else []
        if common := sorted(set.intersection(*map(set, runs))) if runs else []:
            curves[row.title] = {epoch: _mean([run[epoch] for run in runs]) for epoch in common}
    return curves


def _mean(measured: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    return {name: [fmean(values) for values in zip(*(m[name] for m in measured), strict=True)] for name in MEASURES}


def write(manifest: Manifest, store: Store, folder: Path, say: Callable[[str], None]) -> list[Path]:
    """A plot and a CSV for every column that has measurements; rows without are named."""
    files: list[Path] = []
    for column in manifest.columns:
        curves = collect(manifest, store, column.key, say)
        if left := [row.title for row in manifest.rows if row.title not in curves]:
            say(
                f"not in the plot of {column.key}, without a teacher, or not trained with --similarity of today: "
                f"{', '.join(left)}; another --output trains anew"
            )
        if curves:
            path = folder / f"{manifest.name}-blocks-{column.key}"
            values = path.with_name(f"{path.name}.csv")
            write_text(values, csv(curves))
            files += [values, *draw(curves, path)]
    return files


def csv(curves: Curves) -> str:
    """One line per row, epoch and block."""
    lines: list[tuple[object, ...]] = [("row", "epoch", "block", *MEASURES)]
    for title, epochs in curves.items():
        for epoch, values in epochs.items():
            for block, (cka, distance) in enumerate(zip(*(values[name] for name in MEASURES), strict=True), 1):
                lines.append((title, epoch, block, f"{cka:.6f}", f"{distance:.6f}"))
    return csv_text(lines)


def draw(curves: Curves, path: Path) -> list[Path]:
    """One panel per measure and block, one line per row of the table, as PDF and PNG."""
    from matplotlib.ticker import MaxNLocator

    from ..report.figures.drawing import figure, legend_of_all, look, write

    blocks = min(len(values["cka"]) for epochs in curves.values() for values in epochs.values())
    fig, axes = figure(panels=len(MEASURES), height=1.35, across=blocks)
    for line, (name, label) in enumerate(MEASURES.items()):
        for block, panel in enumerate(axes[line * blocks : (line + 1) * blocks]):
            for i, (row, epochs) in enumerate(curves.items()):
                values = [v[name][block] for v in epochs.values()]
                sparse = {"markersize": 2, "markevery": max(1, len(values) // 6)}
                panel.plot(list(epochs), values, label=row, **look(i) | sparse)
            if line == 0:
                panel.set_title(f"block {block + 1}", fontsize=7)
            if line == len(MEASURES) - 1:
                panel.set_xlabel("epoch")
                panel.xaxis.set_major_locator(MaxNLocator(2, integer=True))
        axes[line * blocks].set_ylabel(label.replace(" a ", "\na "))
    legend_of_all(fig, axes[0], columns=2)
    return write(fig, path)
