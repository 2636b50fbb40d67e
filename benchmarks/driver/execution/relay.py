"""A job in a process of its own, which sends what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...common import memory, plugins
from ...common.workspace import Workspace
from ...training import precision
from ...training.failures import Interrupted
from ..engines.context import opened
from ..engines.sending import Sender, portable
from .jobs import Finished, Job, run


def work(send: Callable[[Any], None], job: Job, workspace: Workspace, stopping: Callable[[], bool]) -> None:
    """Run a job in a process of its own; what it does, and how it ends, is sent."""
    error: BaseException | None = None
    memory.keep_memory(workspace.device)
    try:
        precision.check(job.protocol, workspace.device)  # this may be another machine than the one that planned
        plugins.load_again(workspace.plugin_files, {name: file for c in job.cells for name, file in c.plugins.items()})
        run(job, workspace, Sender(send), stopping, opened(job.cells, job.protocol, workspace))
    except (Exception, Interrupted) as raised:  # concerns more than a cell
        error = portable(raised)
    send(Finished(error))
