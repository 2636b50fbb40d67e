"""Runs groups one after another in this process."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from kd_methods.errors import Damaged

from ...analysis.restored import restored
from ...analysis.similarity import BlockSimilarity
from ...common import environment, memory
from ...common.files import digest, set_aside
from ...common.weights import load_weights
from ...common.workspace import Workspace
from ...config.protocol import Protocol
from ...cost.measuring import measure
from ...store.cell import Cell, grouped
from ...store.runs import OTHER_BITS, Run
from ...tasks import TaskData, get_task
from ...teachers.zoo import Teacher, Zoo
from ...training.failures import Failure, Interrupted, line, marked
from ...training.group import Group
from ...training.loop import train
from ...training.precision import autocast
from ...training.shared_teacher import SharedTeacher
from ...training.student_run import StudentRun
from .context import Context
from .counting import Counted
from .engine import Engine, Evaluate, Evaluated


def run(cells: Sequence[Cell], context: Context) -> None:
    """Compute every cell that the store does not have; cells of one group share the teacher's pass.

    Cells that another process holds are left to it, and looked at again in the end: they are done by then, or their
    holder is gone and they are computed here.

    Raises:
        Interrupted: the user asked to stop.
    """

    def once(waiting: Sequence[Cell]) -> list[Cell]:
        held: list[Cell] = []
        for group in grouped(waiting):
            held += _run_group(group, context)
        return held

    until_free(cells, context, once)


def until_free(cells: Sequence[Cell], context: Context, once: Callable[[Sequence[Cell]], list[Cell]]) -> None:
    """Run cells by ``once``, which returns those that another process holds, until none is held.

    Raises:
        Interrupted: the user asked to stop while cells were held.
    """
    waiting = once(list({cell.key: cell for cell in cells}.values()))
    while waiting:
        time.sleep(1)
        if context.stopping():
            raise Interrupted
        waiting = once(waiting)


def until_unlocked(run: Run, stopping: Callable[[], bool]) -> None:
    """Wait for the processes that load a lost one's images: they share its lock, and end some seconds after it.

    Raises:
        Interrupted: the user asked to stop.
    """
    while True:
        with run.lock() as mine:
            if mine:
                return
        if stopping():
            raise Interrupted
        time.sleep(0.2)


def _run_group(cells: Sequence[Cell], context: Context) -> list[Cell]:
    """Run one group; returns the cells that another process holds."""
    held = []
    with ExitStack() as locks:
        mine = []
        for cell in cells:
            run = context.store.run(cell)
            if not locks.enter_context(run.lock()):
                held.append(cell)
            elif not run.ended:  # by whoever held it before, or in an archive that was imported meanwhile
                context.store.create(cell, context.say)
                mine.append(cell)
        if mine:
            _train(mine, context)
    return held


def _train(cells: Sequence[Cell], context: Context) -> None:
    """Train a group; one that does not fit into memory goes on in halves, from its student runs' checkpoints."""
    shortage, left = _shortage(cells, context)
    if not shortage:
        return
    # Outside the except block: there, the error's traceback would keep the whole group in memory.
    gc.collect()
    memory.release_memory()
    if context.workspace.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(cells) == 1:
        failure = Failure("failed", f"out of memory, alone in its group: {shortage}")
        failure.mark(context.store.run(cells[0]))
        context.watcher(failure.ended(cells[0]))
        return
    middle = (len(left) + 1) // 2
    for half in filter(None, (left[:middle], left[middle:])):
        _train(half, context)


def _shortage(cells: Sequence[Cell], context: Context) -> tuple[str, list[Cell]]:
    """Train a group; how it ran out of memory, if it did, and the cells that had not ended by then."""
    left, student_runs = list(cells), list[StudentRun]()
    try:
        group = _group(cells[0], context)
        for cell in cells:
            if student_run := _student_run(cell, group, context):
                student_runs.append(student_run)
            else:
                left.remove(cell)
        if student_runs:
            context.replica.meet()
            train(student_runs, group, context.watcher, context.stopping, context.save_seconds)
    except Exception as error:
        if not memory.out_of_memory(error):
            raise
        ended = {one.cell.key for one in student_runs if one.run.state != "running"}
        return line(error), [cell for cell in left if cell.key not in ended]
    return "", []


def _group(cell: Cell, context: Context) -> Group:
    """What the cells of a cell's group have in common."""
    if cell.teacher is None:
        return Group(context.protocol, context.data, replica=context.replica)
    network, normalisation = context.teacher(cell.teacher), (cell.teacher.mean, cell.teacher.std)
    teacher_pass = context.teacher_pass(cell, network)
    teacher = SharedTeacher(network, normalisation, context.protocol)
    observe = BlockSimilarity(network, normalisation, context.data) if context.similarity else None
    return Group(context.protocol, context.data, teacher, teacher_pass, observe, context.replica)


def assist(cell: Cell, context: Context, run: Run) -> None:
    """Train a cell beside the process that holds it, once that has prepared what the method needs of the teacher."""
    group = _group(cell, context)
    context.replica.meet()
    student_run = StudentRun(cell, group, run, load_weights(context.weights_of(cell.start)) if cell.start else None)
    student_run.restore()
    train([student_run], group, context.watcher, context.stopping, math.inf)


def _student_run(cell: Cell, group: Group, context: Context) -> StudentRun | None:
    """A cell ready to train from its last checkpoint, or None where its method cannot be built for the pair."""
    run = context.store.run(cell)
    # As a teacher's file: one that cannot be read is no failure of the cell.
    weights = load_weights(context.weights_of(cell.start), cell.start.weights) if cell.start else None
    try:
        student_run = StudentRun(cell, group, run, weights)
        if damage := _damage(student_run):
            student_run = StudentRun(cell, group, run, weights)
    except BaseException as error:
        failure = marked(run, error, building=True)
        if failure is None:
            raise
    else:
        if damage:
            context.say(f"{cell.label} starts again: {damage}")
        change = run.add_environment(environment.describe(context.workspace.device), *student_run.position)
        if change and student_run.position[0] <= context.protocol.epochs:
            context.say(f"{cell.label}  {change}, {OTHER_BITS}")
        run.set_status("running", epoch=max(student_run.position[0] - 1, 0), epochs=context.protocol.epochs)
        return student_run
    context.watcher(failure.left_out(cell))
    return None


def _damage(student_run: StudentRun) -> str:
    """Continue from the last checkpoint; if it cannot be used, why not, and where it is kept."""
    try:
        student_run.restore()
    except Damaged as error:
        aside = set_aside(student_run.run / "checkpoint.pt", "unreadable")
        return f"{error}; the file is kept as {aside.name}"
    return ""


def accuracy(entry: Teacher, protocol: Protocol, workspace: Workspace) -> Mapping[str, float]:
    """The metrics of an installed teacher file on the test set."""
    return Zoo(workspace.checkpoints).measure(entry, protocol, workspace.data_root, workspace.device)


def evaluator(workspace: Workspace) -> Evaluate:
    """Evaluates students' files in this process; the data of the last protocol stay open."""
    opened: dict[str, TaskData] = {}

    def evaluate(cell: Cell, protocol: Protocol, file: Path) -> Evaluated:
        place = digest([protocol.task, protocol.identity()])
        if place not in opened:
            opened.clear()  # one at a time: data may be large
            opened[place] = get_task(protocol.task).open(workspace.data_root, protocol, workspace.device)
        data = opened[place]
        deployed = restored(cell, data, load_weights(file)).deployed.eval()
        with autocast(protocol, workspace.device):
            return Evaluated(data.evaluate(lambda x: {"": deployed(x)})[""], data.test_samples)

    return evaluate


ENGINES = (Engine("local", ("images", "text"), run, accuracy, measure, Counted, assist=assist, evaluator=evaluator),)
