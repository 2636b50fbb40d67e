"""Every method trains: its student ends above the plain one less three points, and its terms fall.

On the digits; methods for texts on sentences of a small grammar.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.watchers import ForwardingWatcher

import kd_methods
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.config.published import pair_settings
from benchmarks.driver.engines import local
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.store.make_cell import Distillation, make_cell, student_cell
from benchmarks.store.runs import Run
from benchmarks.tasks import get_task
from benchmarks.training.loop import protocol_progress
from kd_methods import registry

SETTINGS = {
    "usual": ("digits-demo", "resnet14", "resnet8"),
    "two views": ("digits-mlld-demo", "resnet14", "resnet8"),
    "transformers": ("digits32-demo", "timm:test_vit", "timm:test_vit"),
    "texts": ("grammar-demo", "bert_l4_h64", "bert_l2_h64"),
}
"""Protocol, teacher and student."""
FOR_TRANSFORMERS = ("vitkd",)
SEEDS = (0, 1)
AGAINST_OTHERS = {"tf_kd.reg": {"virtual"}, "anc": {"task", "adversarial"}}
"""Terms that hold back what others drive, or are against each other, and those without a weight: they may rise."""
MARGIN = 3.0
"""Points of top-1, or of accuracy, that a method's mean may lie below the plain student's."""
NAMES = [name for name in kd_methods.available() if kd_methods.card(name).modality != "detection"]
NAMES += ["kd@ls", "dkd@ls", "ctkd@ls", "mlld@ls", "crd+kd", "reviewkd+dkd"]


def setting_of(name: str) -> str:
    if name in FOR_TRANSFORMERS:
        return "transformers"
    if kd_methods.card(name).modality == "text":
        return "texts"
    return "two views" if registry.get(name).needs.views > 1 else "usual"


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all processes of pytest, so that what one of them trains is not trained again by another."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if hasattr(request.config, "workerinput") else base) / "digits"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture(scope="module")
def runs(folder: Path) -> Callable[..., list[Run]]:
    """Runs of a method, in the setting of another one where that is said, which are trained by whoever asks first."""

    @functools.cache
    def opened(setting: str) -> tuple[local.Context, Cell]:
        """With the teacher."""
        known, network, _ = SETTINGS[setting]
        protocol, cpu = load_protocol(known), torch.device("cpu")
        data = get_task(protocol.task).open(folder, protocol, cpu)
        context = local.Context(Workspace(cpu, output=folder), protocol, data, lambda ref: folder, ForwardingWatcher())
        teacher = student_cell(network, protocol, get_task(protocol.task).fingerprint(folder, protocol), {})
        local.run([teacher], context)
        return context, teacher

    @functools.cache
    def of(name: str, like: str = "") -> list[Run]:
        setting = setting_of(like or name)
        (_, network, student), (context, teacher) = SETTINGS[setting], opened(setting)
        protocol = context.protocol
        values = dict(pair_settings(name, f"{network}-{student}", protocol.recipe))
        fields = registry.get(name).Settings.model_fields
        if "schedule" in fields:
            values["schedule"] = "constant"  # a weight that falls would hide whether the term does
        if "intermediate_lr" in fields:
            values["intermediate_lr"] = protocol.optimizer.lr  # nothing was pre-trained
        if "epochs" in fields:
            values["epochs"] = 60.0  # a first phase of two epochs, so that its terms can be seen to fall
        ref = TeacherRef(network, protocol.mean, protocol.std, cell=teacher.key)
        taught = Distillation(name, ref if registry.get(name).needs_teacher else None, values)
        cells = [make_cell(protocol, teacher.data, student, taught, seed) for seed in SEEDS]
        local.run(cells, context)
        return [context.store.run(cell) for cell in cells]

    return of


def accuracy(runs: list[Run]) -> float:
    """Top-1, or of texts accuracy: the first metric of the task."""
    return sum(next(iter(run.status["last"].values())) for run in runs) / len(runs)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_trains(runs: Callable[..., list[Run]], name: str) -> None:
    trained, plain = runs(name), runs("student", name)
    assert [run.state for run in trained] == ["done"] * len(SEEDS), trained[0].status
    print(f"{name}: {accuracy(trained):.2f}, plain student {accuracy(plain):.2f}")
    assert accuracy(trained) >= accuracy(plain) - MARGIN
    for phase in dict.fromkeys(record["phase"] for record in trained[0].metrics):
        records = [[record for record in run.metrics if record["phase"] == phase] for run in trained]
        if len(records[0]) > 1:
            for term in set(records[0][0]["losses"]) - AGAINST_OTHERS.get(name, set()):
                first, last = (
                    sum(run[i]["losses"][term] / share(name, term, run[i]) for run in records) for i in (0, -1)
                )
                assert last < first, f"{term} rises from {first / len(SEEDS):.4g} to {last / len(SEEDS):.4g}"


def share(name: str, term: str, record: dict[str, Any]) -> float:
    """The share of its weight that a distillation term has in an epoch, where that changes."""
    if term == "task" or record["phase"]:
        return 1.0
    method = term.partition(".")[0] if "+" in name else name
    if name == "fitnet.paper":
        return 1 - 0.75 * record["epoch"] / 8
    fields = registry.get(method).Settings.model_fields
    progress = protocol_progress(load_protocol("digits-demo"), record["epoch"])
    return progress.ramp(fields["warmup"].default) if "warmup" in fields else 1.0
