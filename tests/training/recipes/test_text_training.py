"""Training on texts: alone, in a group, stopped and resumed to the same bits; decay, clipping, the linear schedule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.text import CPU, PROTOCOL, SMALL_TASK, model, open_task, transformers
from helpers.watchers import CellEvent, ForwardingWatcher, kind
from torch import Tensor

from benchmarks.common.weights import weights_digest
from benchmarks.common.workspace import Workspace
from benchmarks.config.protocol import load_protocol
from benchmarks.config.recipe import Optimizer
from benchmarks.driver.engines import local
from benchmarks.networks import build_network
from benchmarks.store.cell import Cell, TeacherRef
from benchmarks.store.make_cell import Distillation, make_cell
from benchmarks.store.runs import Store
from benchmarks.training.failures import Interrupted

pytestmark = pytest.mark.usefixtures("offline")


DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


class Trained:
    """Cells on a small text task, teacher and student with dropout."""

    def __init__(self, folder: Path, sources: Path) -> None:
        self.data = open_task(SMALL_TASK)
        size = len(self.data.tokenizer)
        self.names = {}
        for role, layers in (("teacher", 3), ("student", 2)):
            place = sources / role
            if not place.is_dir():
                model(seed=layers, num_hidden_layers=layers, vocab_size=size, **DROPOUT).save_pretrained(place)
            self.names[role] = f"hf:{place}"
        self.file = sources / "teacher.pt"
        if not self.file.is_file():
            torch.save(self.data.build(self.names["teacher"]).module.state_dict(), self.file)
        self.store = Store(folder)

    def cells(self, *methods: str) -> list[Cell]:
        digest = weights_digest(torch.load(self.file, weights_only=True))
        ref = TeacherRef(self.names["teacher"], (), (), weights=digest)
        return [
            make_cell(PROTOCOL, "d", self.names["student"], Distillation(m, ref if m != "student" else None))
            for m in methods
        ]

    def run(self, cells: Sequence[Cell], stop_after: int = 10**9) -> None:
        left = [stop_after]

        def report(event: CellEvent) -> None:
            left[0] -= kind(event) == "step"

        context = local.Context(
            Workspace(CPU, output=self.store.root),
            PROTOCOL,
            self.data,
            lambda ref: self.file,
            ForwardingWatcher(report),
            lambda: left[0] <= 0,
        )
        local.run(cells, context)

    def weights(self, cell: Cell) -> dict[str, Tensor]:
        run = self.store.run(cell)
        assert run.state == "done", run.status
        return torch.load(run / "student.pt", weights_only=True)


METHODS = ("kd", "pkd_patient", "tinybert", "minilm", "minilmv2", "block_kd", "rkd")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import tasks

    monkeypatch.setitem(tasks.TASKS._registered, "small", SMALL_TASK)


@pytest.mark.usefixtures("small")
def test_alone_in_a_group_or_stopped_and_resumed_the_bits_are_the_same(tmp_path: Path):
    """Dropout included: each cell draws from its own stream."""
    group = Trained(tmp_path / "group", tmp_path)
    cells = group.cells(*METHODS)
    group.run(cells)
    before = torch.load(group.file, weights_only=True)
    stopped = Trained(tmp_path / "stopped", tmp_path)
    with pytest.raises(Interrupted):
        stopped.run(cells, stop_after=25)
    with pytest.raises(Interrupted):
        stopped.run(cells, stop_after=60)
    stopped.run(cells)
    for cell in cells:
        single = Trained(tmp_path / f"alone-{cell.method}", tmp_path)
        torch.manual_seed(99)
        single.run([cell])
        weights = group.weights(cell)
        for other in (single, stopped):
            assert all(torch.equal(weights[key], value) for key, value in other.weights(cell).items()), cell.label
    start = build_network(group.names["student"], 3).module.state_dict()
    assert not torch.equal(weights["bert.pooler.dense.weight"], start["bert.pooler.dense.weight"])
    assert all(torch.equal(value, before[key]) for key, value in torch.load(group.file, weights_only=True).items())
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "student", num_labels=3)
    plain.load_state_dict(weights)


def test_a_student_of_its_teachers_layers_is_another_cell():
    protocol, teacher = PROTOCOL.model_copy(update={"task": "grammar"}), TeacherRef("bert_l4_h64", (), (), weights="w")
    plain, other = (
        make_cell(protocol, "d", "bert_l2_h64", Distillation("kd", teacher, {}, init)) for init in ("", "first")
    )
    assert plain.key != other.key and "init" not in plain.identity()
    with pytest.raises(ValueError, match="without a teacher"):
        make_cell(protocol, "d", "bert_l2_h64", Distillation("student", None, {}, "first"))


def test_linear_schedule():
    protocol = load_protocol("glue-ft")
    rates = [protocol.lr_at(1, done, 100)[0] for done in range(101)]
    assert rates[0] == 0 and rates[5] == pytest.approx(0.5) and max(rates) == rates[10] == 1
    assert rates[55] == pytest.approx(0.5) and rates[100] == 0


def test_decay_of_matrices_only_and_clipping():
    from benchmarks.training import optimizers
    from kd_methods.contract import Losses

    layer = torch.nn.Linear(2, 2)
    config = Optimizer(name="adamw", lr=0.1, weight_decay=0.5, decay_matrices_only=True, clip=1e-3)
    optimizer = optimizers.build(layer.parameters(), 0.1, config)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    optimizer.backward(Losses(task={"task": 1e3 * layer(torch.ones(1, 2)).sum()}))
    optimizer.update()
    norm = torch.cat([p.grad.flatten() for p in layer.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
