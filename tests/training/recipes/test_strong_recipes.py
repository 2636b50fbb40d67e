"""Settings of strong recipes in cells: stochastic depth, rates that move with epochs, exceptions from weight decay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.training_bench import CPU, Result, TrainingBench, tiny_data
from helpers.watchers import CellEvent, kind
from timm.layers import DropPath
from torch import nn

from benchmarks.config.protocol import Protocol, load_protocol
from benchmarks.tasks import get_task
from benchmarks.tasks.images import ImageData, Split

PAIR = ("timm:test_vit",) * 2
METHODS = [("kd", {}), ("dkd", {})]


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    strong = {
        **{"name": "strong", "epochs": 2, "drop_path": 0.3, "batch_size": 32, "warmup": 0.0},
        **{"schedule": "cosine_by_epoch", "by_epoch": {"warmup": 1, "first": 1e-4, "last": 1e-5}, "recipe_epochs": 2},
        "optimizer": {
            **{"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
            **{"decay_matrices_only": True, "exempt_named": True},
        },
    }
    return Protocol.model_validate({**load_protocol("digits32-demo").model_dump(), **strong})


@pytest.fixture(scope="module")
def data(protocol: Protocol) -> ImageData:
    return opened(protocol)


def opened(protocol: Protocol) -> ImageData:
    """Few images of 32 pixels; the last batch of an epoch has four."""
    train, test = get_task("digits32").load(Path(), False)
    pieces = (Split(part.images[:count], part.labels[:count]) for part, count in ((train, 100), (test, 50)))
    return ImageData(*pieces, 10, protocol, CPU)


def depths(module: nn.Module) -> list[float]:
    return [part.drop_prob for part in module.modules() if isinstance(part, DropPath)]


class Gone(BaseException):
    """The end of a process: what it had in memory is lost."""


def test_killed_and_resumed_and_in_a_group_a_cell_ends_in_the_same_bits(
    tmp_path: Path, protocol: Protocol, data: ImageData
) -> None:
    """Which branches are left out is drawn from the cell's own stream."""
    group, alone = (TrainingBench(tmp_path / name, data, protocol, PAIR) for name in ("group", "alone"))
    cells = group.cells(METHODS)
    made: list[str] = []

    def kill(event: CellEvent) -> None:
        made.append(kind(event))
        if made[-1] == "step" and made.count("step") == 5:
            raise Gone

    report, group.report = group.report, kill  # type: ignore[method-assign]
    with pytest.raises(Gone):
        group.run(cells, save_seconds=0.0)
    group.report = report  # type: ignore[method-assign]
    positions = [torch.load(group.store.run(cell) / "checkpoint.pt")["position"] for cell in cells]
    assert all(epoch == 1 and step > 0 for epoch, step in positions), "in the middle of an epoch"
    group.run(cells)
    usually = protocol.model_copy(update={"drop_path": None})
    without = TrainingBench(tmp_path / "without", opened(usually), usually, PAIR)
    for cell, usual in zip(cells, without.cells(METHODS), strict=True):
        alone.run([cell])
        assert Result(group.store, cell) == Result(alone.store, cell), cell.label
        assert cell.key != usual.key
        rates = [record["lr"] for record in Result(alone.store, cell).records]
        assert rates == pytest.approx([1e-4, 1e-5 + (1e-3 - 1e-5) / 2])
    without.run(without.cells(METHODS[:1]))
    ends = [Result(bench.store, bench.cells(METHODS[:1])[0]).weights for bench in (alone, without)]
    assert not all(map(torch.equal, ends[0].values(), ends[1].values()))


def test_students_have_it_in_training_alone_and_teachers_never(
    tmp_path: Path, protocol: Protocol, data: ImageData
) -> None:
    bench = TrainingBench(tmp_path, data, protocol, PAIR)
    run = bench.student_run(bench.cells([("kd", {})])[0])
    assert depths(run.student)[-1] == pytest.approx(0.3) and depths(run.deployed)[-1] == pytest.approx(0.3)
    assert depths(bench.context().teacher(bench.ref)) == []
    images = next(data.tested())[0][:4]
    run.student.eval()
    x = images.permute(0, 3, 1, 2).float() / 255
    plain = data.build(PAIR[1])
    plain.module.load_state_dict(run.student.module.state_dict())
    torch.testing.assert_close(run.student(x).logits, plain.eval()(x).logits, rtol=0, atol=0)
    run.student.train()
    torch.manual_seed(0)
    assert not torch.equal(run.student(x).logits, plain(x).logits)


def test_a_student_that_has_none_fails_in_one_line(tmp_path: Path, protocol: Protocol) -> None:
    small = protocol.model_copy(update={"task": "digits"})
    bench = TrainingBench(tmp_path, tiny_data(protocol=small), small, ("resnet8", "resnet8"))
    cells = bench.cells([("student", {})])
    bench.run(cells)
    status = str(bench.store.run(cells[0]).status)
    assert bench.states(cells) == ["failed"] and "network 'resnet8' has no stochastic depth" in status
    none = small.model_copy(update={"drop_path": 0.0})
    bench = TrainingBench(tmp_path / "none", tiny_data(protocol=none), none, ("resnet8", "resnet8"))
    assert bench.student_run(bench.cells([("student", {})])[0]).student.units


@pytest.mark.parametrize("spared", [True, False])
def test_token_and_positions_decay_unless_the_protocol_exempts_them(
    tmp_path: Path, protocol: Protocol, data: ImageData, spared: bool
) -> None:
    optimizer = protocol.optimizer.model_copy(update={"exempt_named": spared})
    bench = TrainingBench(tmp_path, data, protocol.model_copy(update={"optimizer": optimizer}), PAIR)
    run = bench.student_run(bench.cells([("student", {})])[0])
    named = {id(run.student.module.get_parameter(name)) for name in ("cls_token", "pos_embed")}
    groups = run.optimizer.param_groups
    decays = {group["weight_decay"] for group in groups if named & set(map(id, group["params"]))}
    assert decays == ({0.0} if spared else {0.05})
