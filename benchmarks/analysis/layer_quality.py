"""Knowledge quality of a teacher, layer by layer: a table, a plot, and the layers that feature-only KD would choose."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

from torch import Tensor

from kd_methods.analysis.quality import EntropyNorm, Metric, Quality, quality
from kd_methods.errors import UserError, unknown

from .. import networks
from ..common.devices import check_precision
from ..common.files import csv_text, write_text
from ..common.network_names import network_title
from ..common.weights import frozen
from ..common.workspace import Workspace
from ..config.protocol import Protocol, protocol_names
from ..report import write_layout
from ..report.table_layout import Line, PrintedCell, Sentence, TableLayout
from ..store.cell import TeacherRef
from ..store.make_cell import student_cell
from ..store.runs import Store
from ..tasks import get_task
from ..teachers.teacher_cell import teacher_cell
from ..teachers.zoo import Zoo
from ..training.teacher_pass import StoredTeacherPass, identity

METRICS: tuple[Metric, ...] = ("S", "I", "E", "Q")


@dataclass(frozen=True)
class Measure:
    """How the metric is measured: as feature-only KD's settings of these names; ``layers`` are marked as chosen.

    The defaults are the card's. For CNN teachers on Tiny-ImageNet the published settings have 50 images ``per_class``.
    """

    layers: int = 4
    entropy_norm: EntropyNorm = "ln5"
    samples: int = 5000
    per_class: int = 500
    self_pairs: bool = True

    @property
    def changes(self) -> str:
        """What is no default, as a part of a file's name."""
        defaults = Measure()
        names = (field.name for field in fields(self))
        return "".join(f"-{name}-{mine}" for name in names if (mine := getattr(self, name)) != getattr(defaults, name))

    @property
    def sentence(self) -> str:
        """All of it in words."""
        norm = "ln 5" if self.entropy_norm == "ln5" else "the logarithm of the samples per class"
        pairs = "with" if self.self_pairs else "without"
        return (
            f"S ({pairs} every image's pair with itself) and E on at most {self.samples} images, I on at most"
            f" {self.per_class} of each class with its entropy over {norm}; of all layers {self.layers} are chosen."
        )

    def values(self, measured: Quality) -> dict[Metric, Tensor]:
        """Each metric of all layers."""
        return {metric: measured.values(metric, self.entropy_norm, self.self_pairs) for metric in METRICS}

    def chosen(self, measured: Quality, metric: Metric = "Q") -> tuple[str, ...]:
        """The layers with the highest values."""
        return measured.best(min(self.layers, len(measured.units)), metric, self.entropy_norm, self.self_pairs)


def report(name: str, protocol: Protocol, workspace: Workspace, measure: Measure) -> tuple[str, list[Path]]:
    """Measure a teacher, by the name of its entry or of its network; returns the table and the files written.

    Raises:
        UserError: no such teacher, or none is installed and none was trained under the protocol.
    """
    output, zoo = workspace.output, Zoo(workspace.checkpoints)
    ref = _teacher(name, protocol, workspace)
    check_precision(workspace.device)
    task, root = get_task(protocol.task), workspace.data_root
    data = task.open(root, protocol, workspace.device)
    store = Store(output)
    path = store.run(ref.cell).student() if ref.cell else zoo.path(zoo.get(ref.entry))
    network = frozen(data.build(ref.network), path)
    cell = student_cell(ref.network, protocol, task.fingerprint(root, protocol), workspace.plugins)
    teacher_pass = StoredTeacherPass(
        network, (ref.mean, ref.std), data, identity(cell, ref), store.prepared, workspace.say
    )
    classes = data.info.num_classes
    measured = quality(teacher_pass, network.layout.layers, classes, measure.samples, measure.per_class)
    text = table(measured, measure)
    folder = output / "quality"
    path = folder / f"{name}-{protocol.name}{measure.changes}"
    table_file = path.with_name(f"{path.name}.csv")
    write_text(table_file, csv(measured, measure))
    files = [table_file, *draw(measured, measure, path)]
    return text, files + write_layout(layout(measured, measure, name, protocol.name), folder)


def _teacher(name: str, protocol: Protocol, workspace: Workspace) -> TeacherRef:
    zoo = Zoo(workspace.checkpoints)
    named = zoo.entries.get(name)
    elsewhere = named if named and named.task != protocol.task else None
    entry = named if named and not elsewhere else zoo.installed(name, protocol.task)
    if entry is not None and zoo.path(entry).is_file():
        return zoo.ref(entry)
    if name not in networks.names():
        if elsewhere:
            raise UserError(
                f"teacher '{name}' is one for {elsewhere.task}, protocol {protocol.name} has images of "
                f"{protocol.task}; name another with --protocol"
            )
        raise unknown("teacher", name, [*zoo.entries, *networks.names()])
    protocol = protocol.for_teachers({})
    data = get_task(protocol.task).fingerprint(workspace.data_root, protocol)
    cell = teacher_cell(name, protocol, data, workspace.plugins, zoo)
    if Store(workspace.output).run(cell).state != "done":
        raise UserError(
            f"no teacher '{name}' is installed, and none was trained under {protocol.name}; "
            f"see: teachers add, teachers fetch, or teachers train {name} --protocol "
            f"{protocol.name if protocol.name in protocol_names() else 'FILE'}"
        )
    return TeacherRef(name, protocol.mean, protocol.std, cell=cell.key)


def table(measured: Quality, measure: Measure) -> str:
    """Layers with their values as plain text; a star marks the layers of highest Q."""
    chosen, values = measure.chosen(measured), measure.values(measured)
    width = max(map(len, measured.units))
    lines = [f"{'':4s} {'layer':{width}s} " + " ".join(f"{metric:>8s}" for metric in METRICS)]
    for i, unit in enumerate(measured.units):
        figures = " ".join(f"{float(values[metric][i]):8.4f}" for metric in METRICS)
        lines.append(f"{i:4d} {unit:{width}s} {figures}{'  *' if unit in chosen else ''}")
    for metric in get_args(Metric):
        units = measure.chosen(measured, metric)
        lines.append(f"layers by {metric:6s}: {', '.join(f'{measured.units.index(u)} ({u})' for u in units)}")
    return "\n".join(lines)


def csv(measured: Quality, measure: Measure) -> str:
    """One line per layer."""
    chosen, values = measure.chosen(measured), measure.values(measured)
    lines: list[tuple[object, ...]] = [("index", "layer", *METRICS, "chosen")]
    for i, unit in enumerate(measured.units):
        figures = (f"{float(values[metric][i]):.6f}" for metric in METRICS)
        lines.append((i, unit, *figures, "yes" if unit in chosen else "no"))
    return csv_text(lines)


def draw(measured: Quality, measure: Measure, path: Path) -> list[Path]:
    """S, I, E and Q over depth as PDF and PNG, the chosen layers marked."""
    from ..report.figures.drawing import DOT, above, figure, look, write

    fig, (axes,) = figure(height=2.6)
    depth = range(len(measured.units))
    values = measure.values(measured)
    for i, metric in enumerate(METRICS):
        style = look(i + 1) | {"marker": "", "linewidth": 1.8 if metric == "Q" else 1.0}
        axes.plot(depth, values[metric], label=metric, **style)
    chosen = [measured.units.index(unit) for unit in measure.chosen(measured)]
    axes.plot(chosen, values["Q"][chosen], "o", color="black", markersize=DOT, zorder=3, label="chosen by Q")
    axes.set_xticks(depth, measured.units, rotation=90, fontsize=4.5 if len(measured.units) > 20 else 6)
    axes.set_ylabel("value")
    above(axes, 5)
    return write(fig, path)


def layout(measured: Quality, measure: Measure, name: str, protocol: str) -> TableLayout:
    """S, I, E and Q of every layer as a table; the chosen layers' Q is bold."""
    chosen, values = measure.chosen(measured), measure.values(measured)
    rows = [
        Line("row", f"{i} {unit}", tuple(
            PrintedCell(f"{float(values[metric][i]):.4f}", rank=int(metric == "Q" and unit in chosen))
            for metric in METRICS
        ))
        for i, unit in enumerate(measured.units)
    ]  # fmt: skip
    return TableLayout(
        name=f"{name}-{protocol}{measure.changes}",
        title=f"Knowledge quality of the layers of {network_title(name)}",
        caption=(Sentence(f"Protocol {protocol}. {measure.sentence}"),),
        heads=(("Layer", METRICS),),
        blocks=(tuple(rows),),
        notes=(("Bold", "the layers that are chosen by Q."),),
    )
