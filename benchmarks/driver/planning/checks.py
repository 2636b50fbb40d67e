"""What a table names exists and fits, before anything is looked up for it; else file and line are named."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kd_methods import registry
from kd_methods.errors import UserError, unknown

from ... import networks
from ...common.yaml_files import where
from ...config.protocol import PROTOCOLS, Protocol, load_protocol
from ...config.table_places import written_in
from ...config.table_spec import TABLE_FILES, Pair, Preset, Row, TaskColumn, without_task
from ...tasks import Task, get_task
from ...training.optimizers import OPTIMIZERS


def check_rows(table: str, preset: str, rows: Sequence[Row], protocol: Protocol) -> None:
    """Methods, their settings, students and optimisers of a table's rows.

    Raises:
        UserError: one does not exist, or does not fit.
    """
    for row in rows:
        at = partial(written_in, table, preset, "methods", row.id)
        with at("method"):
            registry.get(row.method)
        with at("settings"):
            for pair in ("", *row.by_pair):
                registry.settings(row.method, row.settings_on(pair))
                registry.check_stated(row.method, row.settings_on(pair))
        if row.student:
            with at("student"):
                networks.check(row.student)
        with at("optimizer"):
            OPTIMIZERS.get(str(row.optimizer.get("name", protocol.optimizer.name)))
            protocol.with_optimizer(row.optimizer)


def check_columns(table: str, preset: str, tasks: Sequence[TaskColumn], pairs: Sequence[Pair]) -> None:
    """Networks and tasks of a table's columns; ``tasks`` are those that every pair has a column for.

    Raises:
        UserError: one does not exist.
    """
    for pair in pairs:
        at = partial(written_in, table, preset, "pairs", without_task(pair.id) if tasks else pair.id)
        for role in ("teacher", "student"):
            with at(role):
                networks.check(getattr(pair, role))
        if pair.task:
            of_all = any(pair.task == column.task for column in tasks)
            with written_in(table, preset, "tasks", pair.task) if of_all else at("task"):
                get_task(pair.task)


def check_metrics(table: str, preset: str, metric: str, pairs: Sequence[Pair], protocol: Protocol) -> None:
    """Each column's task has the metric that the column, or by ``metric`` the table, shows.

    Raises:
        UserError: it does not.
    """
    for pair in pairs:
        task, shown = get_task(pair.task or protocol.task), pair.metric or metric
        known = getattr(task, "metrics_held_out", task.metrics) if protocol.holdout else task.metrics
        if not shown or not known or shown in known:
            continue
        line = f"column '{pair.id}': {unknown('metric', shown, known)}"
        if not pair.metric:
            raise UserError(f"{where(TABLE_FILES.file(table), 'metric')}: {line}")
        name, _, of_all = pair.id.rpartition(":")
        what = ("tasks", of_all.removesuffix(f".{shown}")) if name else ("pairs", pair.id)
        with written_in(table, preset, *what, "metric"):
            raise UserError(line)


def check_task(table: str, name: str, preset: Preset) -> Task:
    """The task that a preset, called ``name``, or its protocol has.

    Raises:
        UserError: there is none of that name.
    """
    try:
        return get_task(preset.task or load_protocol(preset.protocol).task)
    except UserError as error:
        if preset.task:
            raise UserError(f"{where(TABLE_FILES.file(table), 'presets', name, 'task')}: {error}") from None
        raise UserError(f"{where(PROTOCOLS.file(preset.protocol), 'task')}: {error}") from None


def checked_protocol(name: str) -> Protocol:
    """A protocol, and that of its teachers, whose rates are for students that exist: others would be ignored.

    Raises:
        UserError: there is no such protocol, or it has a rate for an unknown student or an unknown optimiser (file and
            line are named).
    """
    protocol = load_protocol(name)
    place: tuple[str, ...] = ("optimizer", "name")
    try:
        OPTIMIZERS.get(protocol.optimizer.name)
        for student in protocol.lr_by_student:
            place = ("lr_by_student", student)
            networks.check(student)
    except UserError as error:
        raise UserError(f"{where(PROTOCOLS.file(name), *place)}: {error}") from None
    if protocol.teachers_from:
        checked_protocol(protocol.teachers_from)
    return protocol


def check_answers(rows: Sequence[Row], protocol: Protocol) -> None:
    """Where the teacher leaves out answers, methods have terms that leave samples out.

    Raises:
        UserError: one has not.
    """
    if not (protocol.teacher_answers and protocol.teacher_answers.missing):
        return
    for row in rows:
        if registry.get(row.method).needs_teacher and not registry.card(row.method).by_sample:
            fitting = [name for name in registry.available() if registry.card(name).by_sample]
            raise UserError(
                f"method '{row.method}' relates samples or keeps some, and under protocol {protocol.name} the teacher "
                f"does not answer about all of them; leave it out with --methods, possible are {', '.join(fitting)}"
            )
