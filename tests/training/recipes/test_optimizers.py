"""Optimisers and learning rates, against their definitions and across a stop."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training_bench import EPOCHS, PROTOCOL, SAMPLES, STEPS, STUDENT, Result, TrainingBench
from torch import Tensor

from benchmarks.config.protocol import Protocol, load_protocol, steps_per_epoch
from benchmarks.config.protocol_words import lines
from benchmarks.config.recipe import Optimizer
from benchmarks.driver.engines import local
from benchmarks.networks import build_network
from benchmarks.store.cell import Cell
from benchmarks.store.make_cell import Distillation, make_cell
from benchmarks.tasks.images import ImageData
from benchmarks.training import optimizers
from benchmarks.training.failures import Interrupted, Unfit
from benchmarks.training.group import Group
from benchmarks.training.optimizers.exempt import exempt
from benchmarks.training.replicas.replica import Replica
from benchmarks.training.student_run import StudentRun
from kd_methods.contract import Losses

DOT = {"name": "dot", "delta": 0.075}


def make_step(
    optimizer: optimizers.TrainingOptimizer, losses: Losses, part: optimizers.Part = optimizers.WHOLE
) -> None:
    """As the loop makes it."""
    optimizer.backward(losses, part)
    if part.last:
        optimizer.update(part)


def test_dot_by_definition():
    """Algorithm 1 of the paper, and mdistiller's rule for parameters that one kind of terms reaches."""
    torch.manual_seed(0)
    start = [torch.randn(3, dtype=torch.float64) for _ in range(3)]
    parameters = [torch.nn.Parameter(value.clone()) for value in start]
    config = Optimizer(lr=0.1, momentum=0.9, weight_decay=0.01, **DOT)
    optimizer = optimizers.build(parameters, 0.1, config)
    momenta: dict[tuple[int, str], Tensor | float] = dict.fromkeys(
        itertools.product(range(3), ("task", "distill")), 0.0
    )
    values = [value.clone() for value in start]
    reached = {"task": (0, 1), "distill": (0, 2)}
    rates = {(0, "task"): 0.825, (0, "distill"): 0.975, (1, "task"): 0.9, (2, "distill"): 0.9}
    for _ in range(5):
        gradients = {
            kind: {i: 2 * values[i] * (1 + j) for i in which} for j, (kind, which) in enumerate(reached.items())
        }
        for (i, kind), rate in rates.items():
            decay = 0.01 * values[i] if (i, kind) != (0, "distill") else 0.0
            momenta[i, kind] = rate * momenta[i, kind] + gradients[kind][i] + decay
        values = [value - 0.1 * (momenta[i, "task"] + momenta[i, "distill"]) for i, value in enumerate(values)]
        a, b, c = (parameter.pow(2).sum() for parameter in parameters)
        make_step(optimizer, Losses(task={"a": a, "b": b}, distill={"a": 2 * a, "c": 2 * c}))
    for parameter, value in zip(parameters, values, strict=True):
        assert torch.allclose(parameter, value, rtol=1e-12)


def test_dot_without_distillation_is_sgd():
    torch.manual_seed(0)
    start = torch.randn(4)
    weights = []
    for change in ({}, DOT):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = optimizers.build([parameter], 0.1, Optimizer(lr=0.1, weight_decay=0.01, **change))
        for _ in range(4):
            make_step(optimizer, Losses(task={"task": parameter.pow(4).sum()}))
        weights.append(parameter.detach())
    assert torch.allclose(*weights, rtol=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_dot_in_parts_of_a_batch_makes_the_update_of_the_whole(count: int):
    """Of terms that are means over samples; a parameter that only one kind of terms reaches is one, too."""
    torch.manual_seed(0)
    x, start = torch.randn(7, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    updated = []
    for pieces in ([optimizers.WHOLE], list(optimizers.parts_of_batch(7, count))):
        a, b = (torch.nn.Parameter(value.clone()) for value in start)
        optimizer = optimizers.build([a, b], 0.1, Optimizer(lr=0.1, momentum=0.9, weight_decay=0.01, **DOT))
        for _ in range(3):
            for part in pieces:
                samples = x if part.whole else x[part.rows]
                task, distill = (samples * a).sum(1).pow(2).mean(), ((samples * a).sum(1) - b.sum()).pow(2).mean()
                make_step(optimizer, Losses(task={"task": task}, distill={"match": distill}), part)
        updated.append(torch.stack([a, b]).detach())
    assert torch.allclose(*updated, rtol=1e-12) and not torch.allclose(updated[0], start)


@pytest.mark.parametrize(("size", "count", "parts"), [(64, 4, 4), (9, 32, 4), (3, 4, 1), (1, 4, 1)])
def test_no_part_of_a_batch_has_one_sample_alone(size: int, count: int, parts: int):
    """Of one no batch statistics can be had; a batch of one sample is left as it is."""
    pieces = list(optimizers.parts_of_batch(size, count))
    assert len(pieces) == parts and min(piece.least for piece in pieces) >= min(2, size)


def test_dot_keeps_what_only_an_earlier_part_of_a_batch_reached():
    """As a method that draws among its terms in each part may have it."""
    updated = []
    for change in ({}, DOT):
        a, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
        optimizer = optimizers.build([a, b], 0.1, Optimizer(lr=0.1, momentum=0.5, **change))
        for part, reached in zip(optimizers.parts_of_batch(4, 2), (a, b), strict=True):
            make_step(optimizer, Losses(task={"task": reached.sum()}), part)
        updated.append(torch.cat([a, b]).detach())
    assert torch.allclose(*updated) and (updated[1] < 1).all()


def test_dot_in_a_group_and_resumed(bench: TrainingBench, alone: Callable[[Cell], Result], tmp_path: Path):
    """Optimisers of a row's own share the teacher's pass with the others, and resume to the same bits."""
    plain, other = bench.cells([("kd", {}), ("dkd", {})])
    protocol = PROTOCOL.with_optimizer(DOT)
    dotted = make_cell(protocol, "data", STUDENT, Distillation("kd", bench.ref))
    assert dotted.key != plain.key and dotted.group() == plain.group()
    bench.run([dotted])
    expected = Result(bench.store, dotted)
    again = TrainingBench(tmp_path / "again", bench.data)
    with pytest.raises(Interrupted):
        again.run([plain, dotted, other], stopping=lambda: again.steps()[dotted.label] >= 8)
    again.run([plain, dotted, other])
    assert Result(again.store, dotted) == expected != Result(again.store, plain)
    assert Result(again.store, plain) == alone(plain)


def test_adamw_over_one_cycle_follows_torch_and_resumes_exactly(tmp_path: Path, data: ImageData):
    adamw = Optimizer(name="adamw", lr=0.005, weight_decay=0.01)
    protocol = PROTOCOL.model_copy(update={"name": "cycle", "optimizer": adamw, "schedule": "onecycle"})
    results = []
    for name, stops in (("straight", ()), ("stopped", (1, 3, 2))):
        bench = TrainingBench(tmp_path / name, data)
        cell = make_cell(
            protocol, "data", STUDENT, Distillation("feature_only", bench.ref, {"samples": 40, "per_class": 4})
        )
        for stop in stops:
            asked = functools.partial(lambda steps, stop, label: steps()[label] >= stop, bench.steps, stop, cell.label)
            with pytest.raises(Interrupted):
                local.run([cell], dataclasses.replace(bench.context(stopping=asked), protocol=protocol))
        local.run([cell], dataclasses.replace(bench.context(), protocol=protocol))
        results.append(Result(bench.store, cell))
    assert results[0] == results[1]
    parameter = torch.nn.Parameter(torch.zeros(1))
    reference = torch.optim.AdamW([parameter], lr=1.0)
    steps = steps_per_epoch(SAMPLES, protocol)
    schedule = torch.optim.lr_scheduler.OneCycleLR(reference, max_lr=0.005, total_steps=EPOCHS * steps)
    for epoch, record in enumerate(results[0].records, 1):
        while schedule.last_epoch < epoch * steps - 1:
            reference.step()
            schedule.step()
        assert record["lr"] == pytest.approx(reference.param_groups[0]["lr"], rel=1e-5)


def rates(protocol: Protocol, student: str) -> list[float]:
    return [protocol.lr(student) * protocol.lr_at(epoch)[0] for epoch in range(1, protocol.epochs + 1)]


def test_learning_rate_of_the_field_s_recipe():
    recipe = load_protocol("cifar100-crd240")
    wanted = [0.05] * 150 + [0.005] * 30 + [0.0005] * 30 + [0.00005] * 30
    assert rates(recipe, "resnet20") == pytest.approx(wanted)
    for small in ("MobileNetV2", "ShuffleV1", "ShuffleV2"):
        assert rates(recipe, small) == pytest.approx([value / 5 for value in wanted])


def test_learning_rate_of_a_shortened_recipe():
    assert rates(load_protocol("cifar100-short"), "resnet20") == pytest.approx([0.05] * 7 + [0.005, 0.0005, 0.00005])
    recipe = load_protocol("cifar100-crd240")
    assert rates(recipe.changed(epochs=24), "resnet20") == pytest.approx(
        [0.05] * 15 + [0.005] * 3 + [0.0005] * 3 + [0.00005] * 3
    )
    assert rates(recipe.changed(epochs=1), "resnet20") == [0.05]
    assert rates(recipe.changed(epochs=480), "resnet20")[299:301] == pytest.approx([0.05, 0.005])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_backbone_learns_at_its_share_of_the_rate(name: str):
    """As two optimisers of their own would; the rate that is recorded is the full one."""
    torch.manual_seed(0)
    start = [torch.randn(3), torch.randn(3)]
    together, apart = ([torch.nn.Parameter(value.clone()) for value in start] for _ in range(2))
    config = Optimizer(name=name, lr=1.0, weight_decay=0.1, backbone=0.01)  # type: ignore[arg-type]
    one = optimizers.build(together, 1.0, config, slow=together[:1])
    two = [optimizers.build([p], 1.0, config.model_copy(update={"backbone": 1.0})) for p in apart]
    for lr in (0.3, 0.1, 0.2):
        one.set_lr(lr, 0.9)
        for optimizer, share in zip(two, (0.01, 1.0), strict=True):
            optimizer.set_lr(lr * share, 0.9)
        make_step(one, Losses(task={"task": sum(p.square().sum() for p in together)}))  # type: ignore[dict-item]
        for optimizer, p in zip(two, apart, strict=True):
            make_step(optimizer, Losses(task={"task": p.square().sum()}))
        assert one.param_groups[0]["lr"] == lr
    assert all(torch.allclose(a, b) for a, b in zip(together, apart, strict=True))
    assert (apart[0] - start[0]).norm() < 0.1 * (apart[1] - start[1]).norm()


def test_the_optimiser_gets_the_rate_of_the_epoch(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch):
    used: list[tuple[tuple[int, int], float]] = []
    step = StudentRun.step

    def watch(self: StudentRun, *arguments: Any) -> None:
        position = self.position
        step(self, *arguments)
        used.append((position, self.optimizer.param_groups[0]["lr"]))

    monkeypatch.setattr(StudentRun, "step", watch)
    (cell,) = bench.cells([("student", {})])
    with pytest.raises(Interrupted):
        bench.run([cell], stopping=lambda: len(used) >= STEPS + 2)
    bench.run([cell])
    assert [position for position, _ in used] == [(e, s) for e in (1, 2) for s in range(STEPS)]
    assert [rate for _, rate in used] == pytest.approx([0.05] * STEPS + [0.005] * STEPS)


def test_lamb_by_definition():
    """Adam's step, the decay in it, times the norm of the weight over that of the step; biases have Adam's as it is."""
    torch.manual_seed(0)
    weight, bias = torch.nn.Parameter(torch.randn(3, 2).double()), torch.nn.Parameter(torch.randn(3).double())
    config = Optimizer(name="lamb", lr=0.1, weight_decay=0.02, decay_matrices_only=True)
    optimizer = optimizers.build([weight, bias], 0.1, config)
    values = [weight.detach().clone(), bias.detach().clone()]
    moments: list[list[Tensor | float]] = [[0.0, 0.0], [0.0, 0.0]]
    for t in range(1, 5):
        for i, value in enumerate(values):
            gradient = 4 * value**3
            moments[i] = [0.9 * moments[i][0] + 0.1 * gradient, 0.999 * moments[i][1] + 0.001 * gradient**2]
            step = (moments[i][0] / (1 - 0.9**t)) / ((moments[i][1] / (1 - 0.999**t)) ** 0.5 + 1e-6)
            if i == 0:
                step = step + 0.02 * value
                step = step * value.norm() / step.norm()
            values[i] = value - 0.1 * step
        make_step(optimizer, Losses(task={"task": weight.pow(4).sum() + bias.pow(4).sum()}))
    for parameter, value in zip((weight, bias), values, strict=True):
        assert torch.allclose(parameter, value, rtol=1e-9)
    assert config.line() == "LAMB, beta2 0.999, weight decay 0.02 of matrices only"
    optimizer.restart()
    assert all("step" not in group for group in optimizer.param_groups), "a first phase's steps are not counted"


def test_lamb_resumes_exactly(tmp_path: Path, data: ImageData):
    lamb = Optimizer(name="lamb", lr=0.005, weight_decay=0.02, decay_matrices_only=True, clip=1.0)
    protocol = PROTOCOL.model_copy(update={"name": "lamb", "optimizer": lamb})
    results = []
    for name, stops in (("straight", ()), ("stopped", (1, 3, STEPS + 1))):
        bench = TrainingBench(tmp_path / name, data, protocol)
        (cell,) = bench.cells([("fitnet", {})])
        for stop in stops:
            with pytest.raises(Interrupted):
                bench.run([cell], stopping=lambda b=bench, n=stop: sum(b.steps().values()) >= n)
        bench.run([cell])
        results.append(Result(bench.store, cell))
    assert results[0] == results[1]


def test_a_rate_that_falls_in_steps_may_rise_first():
    protocol = load_protocol("imagenet-100").model_copy(update={"warmup": 0.03})
    total = 100 * 50
    factors = [protocol.lr_at(1 + done // 50, done, total)[0] for done in range(total)]
    assert factors[0] == 0 and factors[75] == pytest.approx(0.5)
    assert factors[150:1500] == [1.0] * 1350 and factors[1500] == pytest.approx(0.1)
    assert "after a linear warm-up over 3% of the steps" in lines(protocol)[1]


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:swin_tiny_patch4_window7_224", "timm:test_resnet"])
def test_what_does_not_decay_is_what_timm_leaves_out(name: str):
    """Of the network: the groups that timm's create_optimizer_v2 makes; of a method's parts those that are vectors."""
    from timm.optim import create_optimizer_v2

    network, part = build_network(name, 10, (3, 64, 64)), torch.nn.Linear(3, 2)
    config = Optimizer(name="adamw", lr=0.1, weight_decay=0.05, decay_matrices_only=True, exempt_named=True)
    parameters = [*network.parameters(), *part.parameters()]
    ours = optimizers.build(parameters, 0.1, config, undecayed=exempt(network))
    theirs = create_optimizer_v2(network.module, "adamw", lr=0.1, weight_decay=0.05)

    def decays(optimizer: Any) -> dict[int, float]:
        return {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}

    assert decays(ours) == {**decays(theirs), id(part.weight): 0.05, id(part.bias): 0.0}
    named = {id(p) for p in network.parameters() if p.dim() > 1 and not decays(ours)[id(p)]}
    assert bool(named) == (name != "timm:test_resnet"), "class token and position embeddings, or tables of positions"


def test_a_networks_exceptions_are_found_where_a_part_of_it_is_exchanged():
    student, teacher = (build_network("timm:test_vit", 10, (3, 32, 32)) for _ in range(2))
    unit = student.layout.stages[1]
    joint = student.with_teacher_tail(unit, "own", torch.nn.Linear(64, 64), teacher, unit)
    spared = {id(parameter) for parameter in exempt(joint)}
    names = {name for name, parameter in joint.named_parameters() if id(parameter) in spared and parameter.dim() > 1}
    assert len(names) >= 2 and all(name.endswith(("cls_token", "pos_embed")) for name in names)


def test_an_optimiser_that_leaves_processes_apart_is_a_failure(bench: TrainingBench, monkeypatch: pytest.MonkeyPatch):
    """Of every cell, and no answer about the method: that would stand in the table for good."""
    monkeypatch.setattr(optimizers.SummedTerms, "divides", False)
    (cell,) = bench.cells([("student", {})])
    group = Group(PROTOCOL.model_copy(update={"world_size": 2}), bench.data, replica=Replica(0, 2))
    with pytest.raises(Unfit, match="optimizer sgd: its gradients are not summed over processes"):
        StudentRun(cell, group, bench.store.run(cell))
