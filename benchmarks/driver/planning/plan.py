"""From a request to cells: which rows, columns and seeds of a table, with which teachers, under which protocol."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kd_methods import registry
from kd_methods.errors import UserError, unknown

from ... import networks
from ...common.workspace import Workspace
from ...common.yaml_files import merged, read_value
from ...config.changed_rows import ChangedRow, base_and_changes, changed_id, changed_title, flat
from ...config.protocol import Changes, Protocol, load_protocol, protocol_names, steps_per_epoch
from ...config.protocol_words import lines as protocol_lines
from ...config.published import literature, pair_settings
from ...config.table_spec import Pair, Row, TableSpec, TaskColumn, columns, load_table, table_folder_of, without_task
from ...store.cell import Cell, TeacherRef
from ...store.make_cell import Distillation, make_cell, student_cell
from ...store.selection import Selection
from ...tasks import Task, get_task
from ...tasks.stated import Stated, at_hand
from ...teachers.teacher_cell import teacher_cell
from ...teachers.zoo import Zoo
from ...training import precision
from . import checks


@dataclass(frozen=True)
class Request:
    """What the user asked for; ``uniform``: no settings per pair, each method's defaults everywhere."""

    table: str
    preset: str = "paper"
    methods: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    changes: Changes = field(default_factory=Changes)
    uniform: bool = False
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Everything that a table needs, resolved: no name in it can be wrong any more.

    cells     (row id, pair id, seed) to cell; methods without a teacher share one cell over pairs with one student
    teachers  (network name, task) to the teacher that the pairs use
    training  the cells that train teachers for which no file is installed, under ``teacher_protocol``
    sources   each column's task, or what is stated of its data where they are not here
    """

    table: TableSpec
    source: str
    preset: str
    protocol: Protocol
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    cells: Mapping[tuple[str, str, int], Cell]
    teachers: Mapping[tuple[str, str], TeacherRef]
    training: tuple[Cell, ...]
    notes: tuple[str, ...]
    teacher_protocol: Protocol
    uniform: bool = False
    sources: Mapping[str, Task | Stated] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the columns, each once."""
        return tuple(dict.fromkeys(self.protocol_of(pair).task for pair in self.pairs))

    def every_cell(self) -> list[Cell]:
        """The cells of teachers and students, each once."""
        return list({cell.key: cell for cell in [*self.training, *self.cells.values()]}.values())

    def protocol_of(self, pair: Pair) -> Protocol:
        """The protocol of a column: the plan's, on the column's task."""
        return self.protocol.on_task(pair.task)

    @property
    def data(self) -> dict[str, str]:
        """The fingerprint of each task's data."""
        return {cell.task: cell.data for cell in self.cells.values()}

    def metric_of(self, pair: Pair) -> str:
        """What a column shows: its own metric, the table's, or the task's."""
        return pair.metric or self.table.metric or get_task(self.protocol_of(pair).task).metric

    def lines(self, students: Collection[str] | None = None) -> tuple[str, ...]:
        """The protocol in words; the task only where the columns do not have their own."""
        return protocol_lines(self.protocol, students, with_task=not self.column_tasks)

    @property
    def column_tasks(self) -> bool:
        """Whether the columns have tasks of their own."""
        return any(pair.task for pair in self.pairs)

    def apart(self, cells: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
        """Those of ``cells`` that train teachers, and those of the table."""
        training = {cell.key for cell in self.training}
        teachers = [cell for cell in cells if cell.key in training]
        return teachers, [cell for cell in cells if cell.key not in training]

    def stages(self, cells: Sequence[Cell]) -> list[tuple[Protocol, list[list[Cell]]]]:
        """``cells`` in the order in which they can be trained, those together that have one protocol."""
        teachers, students = self.apart(cells)
        if not self.protocol.teachers_from:
            return [(self.protocol, [teachers, students])] if cells else []
        stages = [(self.teacher_protocol, [teachers]), (self.protocol, [students])]
        return [(protocol, [stage]) for protocol, [stage] in stages if stage]

    def teacher_of(self, pair: Pair) -> TeacherRef:
        """The teacher of a column."""
        return self.teachers[pair.teacher, self.protocol_of(pair).task]

    @property
    def selection(self) -> Selection:
        """The part of the table that was asked for."""
        return Selection(tuple(row.id for row in self.rows), tuple(pair.id for pair in self.pairs), self.seeds)

    @property
    def table_folder(self) -> str:
        """Folder of this plan's table."""
        usual = load_protocol(self.table.preset(self.preset).protocol)
        return table_folder_of(self.table.name, self.preset, usual, self.protocol, self.uniform)


def make(request: Request, workspace: Workspace, stated: bool = False) -> Plan:
    """Resolve a request.

    Args:
        request: what is asked for.
        workspace: where data and teachers are looked for.
        stated: official data that are not here are planned for, not read; such a plan cannot be run.

    Raises:
        UserError: an unknown name or setting, missing data, a damaged teacher file.
    """
    data_root, plugins = workspace.data_root, workspace.plugins
    table = load_table(request.table)
    preset = table.preset(request.preset)
    assert preset.pairs is not None and preset.methods is not None
    protocol = checks.checked_protocol(preset.protocol)
    protocol = protocol.on_task(checks.check_task(request.table, request.preset, preset).name)
    protocol, teacher_protocol = protocol.changed(**request.changes), protocol.for_teachers(request.changes)
    for recipe in (protocol, teacher_protocol):
        precision.check(recipe, workspace.device)
    if protocol.start:
        raise UserError(
            f"protocol {protocol.name} is one for teachers (start: {protocol.start}); name it in teachers_from of the "
            f"protocol that students have"
        )
    rows = _rows(request.methods, preset.methods)
    pairs = _pairs(request.pairs, preset.pairs, preset.tasks or ())
    checks.check_rows(request.table, request.preset, rows, protocol)
    rows = _with_changed(rows, request.overrides)
    checks.check_columns(request.table, request.preset, preset.tasks or (), pairs)
    pairs = tuple(pair.model_copy(update={"task": pair.task and get_task(pair.task).name}) for pair in pairs)
    seeds = tuple(dict.fromkeys(request.seeds)) or preset.seeds
    _check_views(rows, protocol)
    checks.check_answers(rows, protocol)

    protocol, sources, fingerprints = _at_hand(protocol, pairs, data_root, stated)
    _check_modality(pairs, rows, protocol)
    checks.check_metrics(request.table, request.preset, table.metric, pairs, protocol)
    if table.published:
        literature(table.published)

    taught = [row for row in rows if registry.get(row.method).needs_teacher]
    with_teacher = [pair for pair in pairs if taught or pair.init or any(row.init for row in rows)]
    teachers, training = _teachers(pairs, with_teacher, protocol.task, teacher_protocol, sources, workspace)
    cells: dict[tuple[str, str, int], Cell] = {}
    for row in rows:
        for pair in pairs:
            column_protocol = protocol.on_task(pair.task)
            published = {} if request.uniform else pair_settings(row.method, pair.id, protocol.recipe)
            values = merged(published, row.settings_on(pair.id))
            init = row.init or pair.init
            teacher = teachers[pair.teacher, column_protocol.task] if row in taught or init else None
            cell = make_cell(
                column_protocol.with_optimizer(row.optimizer),
                fingerprints[column_protocol.task],
                row.student or pair.student,
                Distillation(row.method, teacher, values, init),
                plugins=plugins,
            )
            cells |= {(row.id, pair.id, seed): replace(cell, seed=seed) for seed in seeds}
    return Plan(
        table,
        request.table,
        request.preset,
        protocol,
        rows,
        pairs,
        seeds,
        cells,
        teachers,
        training,
        preset.notes,
        teacher_protocol,
        request.uniform,
        sources,
    )


def _at_hand(
    protocol: Protocol, pairs: Sequence[Pair], data_root: Path, stated: bool
) -> tuple[Protocol, dict[str, Task | Stated], dict[str, str]]:
    """The tasks of all columns, and the fingerprints of their data; the protocol with what is not official in these.

    Raises:
        UserError: data are missing, or too few for the protocol.
    """
    deviations: list[str] = []
    sources: dict[str, Task | Stated] = {}
    fingerprints: dict[str, str] = {}
    for name in dict.fromkeys(pair.task or protocol.task for pair in pairs):
        task, fingerprints[name] = at_hand(protocol.on_task(name), data_root, stated)
        sources[name], samples = task, task.samples(data_root)
        if not protocol.holdout < samples:
            raise UserError(f"--holdout {protocol.holdout}: the training set has {samples} samples")
        _check_steps(name, samples, protocol)
        deviations += task.deviations(data_root)
    protocol = protocol.model_copy(update={"deviations": (*protocol.deviations, *deviations)})
    return protocol, sources, fingerprints


def _check_steps(task: str, samples: int, protocol: Protocol) -> None:
    if not steps_per_epoch(samples, protocol):
        raise UserError(
            f"task {task} has {samples - protocol.holdout} training samples here, fewer than a batch of "
            f"{protocol.batch_size}, and protocol {protocol.name} leaves incomplete batches out"
        )


def _teachers(
    pairs: Sequence[Pair],
    with_teacher: Sequence[Pair],
    usual_task: str,
    protocol: Protocol,
    sources: Mapping[str, Task | Stated],
    workspace: Workspace,
) -> tuple[dict[tuple[str, str], TeacherRef], tuple[Cell, ...]]:
    """The teachers by (network, task): installed files, else cells under ``protocol``; and the cells to be trained.

    Those of pairs that are not ``with_teacher`` are in the manifest alone, and are not trained.
    """
    zoo, data_root, plugins = Zoo(workspace.checkpoints), workspace.data_root, workspace.plugins
    teachers: dict[tuple[str, str], TeacherRef] = {}
    training: list[Cell] = []
    for pair in pairs:
        place = (pair.teacher, pair.task or usual_task)
        if place in teachers:
            continue
        if entry := zoo.installed(*place):
            teachers[place] = zoo.ref(entry)
        else:
            recipe = protocol.on_task(place[1])
            if pair in with_teacher:
                _check_steps(recipe.task, sources[recipe.task].samples(data_root), recipe)
                _check_network(pair.teacher, recipe)
            source = pair.teacher, recipe, sources[recipe.task].fingerprint(data_root, recipe), plugins
            cell = teacher_cell(*source, zoo) if pair in with_teacher else student_cell(*source)
            training += [cell] if pair in with_teacher else []
            teachers[place] = TeacherRef(pair.teacher, protocol.mean, protocol.std, cell=cell.key)
    return teachers, tuple(training)


def _check_modality(pairs: Sequence[Pair], rows: Sequence[Row], protocol: Protocol) -> None:
    for pair in pairs:
        for network in (pair.teacher, pair.student, *(row.student for row in rows if row.student)):
            _check_network(network, protocol.on_task(pair.task))


def _check_network(network: str, protocol: Protocol) -> None:
    """The protocol gives the network inputs that it can take."""
    task = get_task(protocol.task)
    networks.check_modality(network, task.name, task.modality)
    known = networks.positions(network)
    if known is not None and protocol.max_length > known:
        raise UserError(
            f"protocol {protocol.name} keeps {protocol.max_length} tokens of a text, network '{network}' has "
            f"{known} positions; set the protocol's max_length to {known} or less"
        )
    if task.modality == "images" and protocol.crop_padding >= task.size:
        size = f"images of task {task.name} have {task.size} pixels"
        raise UserError(f"protocol {protocol.name}: crop_padding {protocol.crop_padding} leaves nothing, {size}")


def _check_views(rows: Sequence[Row], protocol: Protocol) -> None:
    for row in rows:
        if registry.get(row.method).needs.views > protocol.views:
            others = [other for name in protocol_names() if (other := load_protocol(name)).views > 1]
            fitting = [other.name for other in others if other.task == protocol.task] or [o.name for o in others]
            raise UserError(
                f"method '{row.method}' needs two views of each image and protocol {protocol.name} gives one; "
                f"run it in a table under {' or '.join(fitting)}, or leave it out with --methods"
            )


def _rows(wanted: Sequence[str], known: Sequence[Row]) -> tuple[Row, ...]:
    by_id = {row.id: row for row in known}
    rows: list[Row] = []
    for name in dict.fromkeys(wanted or by_id):
        base, changes = (name, ()) if name in by_id else base_and_changes(name)
        if base not in by_id and not registry.exists(base):
            raise unknown("method", base, {*by_id, *registry.available()})
        row = by_id.get(base) or Row(id=base, method=base)
        rows += _with_changed((row,), [f"{base}.{change}" for change in changes])[-1:]
    return tuple(rows)


def _pairs(wanted: Sequence[str], known: Sequence[Pair], tasks: tuple[TaskColumn, ...]) -> tuple[Pair, ...]:
    pairs: dict[str, Pair] = {}
    for name in wanted or (pair.id for pair in known):
        # A pair's name without a task means its columns on all tasks.
        shown = tuple(pair for pair in known if name in (pair.id, without_task(pair.id)))
        pairs |= {pair.id: pair for pair in shown or columns((_free_pair(name, known),), tasks)}
    return tuple(pairs.values())


def _free_pair(name: str, known: Sequence[Pair]) -> Pair:
    """``teacher-student`` of any two networks; a dash may be part of a name."""
    words = name.split("-")
    for i in range(1, len(words)):
        teacher, student = "-".join(words[:i]), "-".join(words[i:])
        try:
            networks.check(teacher)
            networks.check(student)
        except UserError:
            continue
        return Pair(id=name, teacher=teacher, student=student)
    raise unknown("pair", name, [pair.id for pair in known])


def _with_changed(rows: Sequence[Row], texts: Sequence[str]) -> tuple[Row, ...]:
    """The rows, and after each whose settings are changed the row that this makes."""
    overrides = _overrides(texts, rows)
    both = [[row, _changed(row, overrides[row.id])] if row.id in overrides else [row] for row in rows]
    return tuple({row.id: row for group in both for row in group}.values())


def _changed(row: Row, changes: dict[str, Any]) -> ChangedRow:
    """A row under other settings; nothing is published for it."""
    settings = merged(row.settings, changes)
    complete = flat(registry.settings(row.method, settings).model_dump(mode="json"))
    registry.check_stated(row.method, settings)
    named = {key: complete.get(key, value) for key, value in flat(changes).items()}
    changed = {
        "id": changed_id(row.id, named),
        "title": changed_title(row.title or registry.card(row.method).title, named),
        "settings": settings,
        "by_pair": {pair: merged(values, changes) for pair, values in row.by_pair.items()},
        "published": "",
    }
    return ChangedRow.model_validate({**row.model_dump(), **changed, "base": row.id, "changes": named})


def _overrides(texts: Sequence[str], rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """``METHOD.key=value`` to values per row; the value is read as YAML."""
    overrides: dict[str, dict[str, Any]] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        row = max((row for row in rows if path.startswith(f"{row.id}.")), key=lambda row: len(row.id), default=None)
        if not (equals and "." in path.strip(".")):
            raise UserError(f"--set {text}: write METHOD.key=value, for example kd.temperature=2")
        if row is None:
            raise unknown("method in --set", path.rpartition(".")[0], (row.id for row in rows))
        key = path.removeprefix(f"{row.id}.")
        read = read_value(value, f"--set {path}")
        # A combination's settings lie under the names of its methods: crd+kd.kd.temperature=2.
        methods = registry.combined_methods(row.method)
        method = max((name for name in methods if key.startswith(f"{name}.")), key=len, default=None)
        change = {method: {key.removeprefix(f"{method}."): read}} if method else {key: read}
        overrides[row.id] = merged(overrides.get(row.id, {}), change)
    return overrides
