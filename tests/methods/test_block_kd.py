"""Block-KD: stones, their weights, what they cost, how they come in."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.method_setup import CLASSES, PAIRS, Setup
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import kd_methods
from benchmarks import networks
from benchmarks.networks import build_network, macs
from kd_methods import functional
from kd_methods.contract import (
    DataInfo,
    Progress,
)
from kd_methods.errors import UserError

COSTS = {
    ("resnet56", "resnet20"): (5600, 125.8, 40.8, 82.8, 41.4, 0),
    ("resnet110", "resnet20"): (5600, 253.2, 40.8, 167.8, 83.9, 0),
    ("resnet110", "resnet32"): (5600, 253.2, 69.1, 167.8, 83.9, 0),
    ("resnet32x4", "resnet8x4"): (86912, 1083.0, 177.1, 721.4, 360.7, 0),
    ("wrn_40_2", "wrn_16_2"): (21952, 327.6, 101.1, 218.1, 109.1, 0),
    ("wrn_40_2", "wrn_40_1"): (11200, 327.6, 83.3, 218.1, 109.1, 0),
    ("vgg13", "vgg8"): (609024, 284.9, 96.2, 188.8, 132.2, 75.5, 0.1),
    ("vgg13", "MobileNetV2"): (688384, 284.9, 6.5, 188.8, 132.2, 75.5, 0.1),
    ("ResNet50", "MobileNetV2"): (2689536, 1298.0, 6.5, 1078.1, 742.6, 264.4, 0.2),
    ("ResNet50", "vgg8"): (1744384, 1298.0, 96.2, 1078.1, 742.6, 264.4, 0.2),
    ("resnet32x4", "ShuffleV1"): (323456, 1083.0, 38.7, 721.4, 360.7, 0),
    ("resnet32x4", "ShuffleV2"): (300160, 1083.0, 44.5, 721.4, 360.7, 0),
    ("wrn_40_2", "ShuffleV1"): (161728, 327.6, 38.7, 218.1, 109.1, 0),
}
"""Parameters of the connectors; then millions of MACs: teacher, student, what is run for each stone."""


@pytest.mark.parametrize("pair", COSTS, ids=">".join)
def test_what_stones_cost(pair: tuple[str, str]):
    """The cuts into blocks: another one would change these figures, which come from mdistiller's networks."""
    teacher, student = (build_network(name, 100).requires_grad_(False).eval() for name in pair)
    method = kd_methods.build("block_kd", student, teacher, DataInfo(50_000, 100))
    assert sum(p.numel() for p in method.parameters()) == COSTS[pair][0]
    image = torch.zeros(1, 3, 32, 32)
    operations = [macs(teacher.plain(), image), macs(student.plain(), image)]
    for unit in method.units:
        with FlopCounterMode(display=False) as counter:
            teacher.resume(unit, torch.zeros(1, *teacher.shape(unit)))
        operations.append(counter.get_total_flops() // 2)
    assert [value / 1e6 for value in operations] == pytest.approx(COSTS[pair][1:], abs=0.07)


@pytest.mark.parametrize("pair", PAIRS, ids=">".join)
@pytest.mark.parametrize("chosen", [None, (1,), (1, 3), (-2, -1)], ids=str)
def test_one_sweep_equals_separate_passes(pair: tuple[str, str], chosen: tuple[int, ...] | None):
    setup = Setup("block_kd", {"active_stones": chosen}, pair)
    setup.method.eval()  # connectors' running statistics, so that a pass does not change the next
    student, _ = setup.outputs()
    n = len(setup.method.units)
    blocks = student.blocks[-n:]
    auxiliary_logits = setup.method.auxiliary_logits(student)
    expected_stones = range(1, n + 1) if chosen is None else sorted(i if i > 0 else n + 1 + i for i in chosen)
    assert list(auxiliary_logits) == [f"stone_{i}" for i in expected_stones]
    for i in expected_stones:
        feature = setup.method.connectors[str(i)](blocks[i - 1])
        for tail, tolerance in ((setup.teacher.fold_batch_norms(), 2e-6), (setup.teacher, 1e-5)):
            alone = tail.resume(setup.teacher.layout.blocks[-n:][i - 1], feature)
            assert (auxiliary_logits[f"stone_{i}"] - alone).norm() <= tolerance * alone.norm()


def test_without_stones_it_is_kd():
    weights = {"alpha": 0.1, "beta": 0.9, "active_stones": ()}
    block, kd = Setup("block_kd", weights).losses(), Setup("kd").losses()
    assert block.terms().keys() == kd.terms().keys()
    assert block.total().item() == pytest.approx(kd.total().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("pair", "weights"), [(PAIRS[0], [0.25, 0.5, 1]), (("vgg8", "vgg8"), [0.125, 0.25, 0.5, 1])], ids=["n3", "n4"]
)
def test_stone_weights(pair: tuple[str, str], weights: list[float]):
    assert Setup("block_kd", pair=pair).method.stone_weights == weights
    assert Setup("block_kd", {"stone_weighting": "equal"}, pair).method.stone_weights == [1.0] * len(weights)
    last_two = Setup("block_kd.lite", pair=pair).method
    assert last_two.active == [len(weights) - 1, len(weights)] and last_two.stone_weights == weights


@pytest.mark.parametrize("distance", ["kl", "dkd"])
def test_the_loss_by_definition(distance: str):
    settings = {"alpha": 0.7, "beta": 1.3, "gamma": 0.4, "distance": distance}
    setup = Setup("block_kd", settings)
    setup.method.eval()
    student, teacher = setup.outputs()
    losses = setup.method.losses(student, teacher, setup.batch, setup.progress)
    y, s, t = setup.batch.labels, student.logits, teacher.logits
    stones = list(setup.method.auxiliary_logits(student).values())
    ensemble = sum(stones) / 3

    def d(a: Tensor, b: Tensor) -> Tensor:
        if distance == "dkd":
            return functional.dkd(a, b, y, alpha=1.0, beta=8.0, temperature=4.0)
        return functional.kd(a, b, temperature=4.0)

    def with_stones(term: Tensor, of: list[Tensor]) -> Tensor:
        return term + of[0] / 4 + of[1] / 2 + of[2]

    expected = (
        0.7 * with_stones(F.cross_entropy(s, y), [F.cross_entropy(z, y) for z in stones])
        + 1.3 * with_stones(d(s, t), [d(z, t) for z in stones])
        + 0.4 * with_stones(d(s, ensemble), [d(z, ensemble) for z in stones])
    )
    assert losses.total().item() == pytest.approx(expected.item(), rel=1e-5)
    assert set(losses.task) == {"task", "stones_task"}


def test_the_ensemble_is_detached():
    """The student's term against the ensemble moves the student's own path only, never a connector."""
    setup = Setup("block_kd")
    cross = setup.losses().distill["cross"]
    connectors = list(setup.method.connectors.parameters())
    assert all(g is None for g in torch.autograd.grad(cross, connectors, retain_graph=True, allow_unused=True))
    head = list(setup.student.parameters())[-1]
    assert torch.autograd.grad(cross, head)[0].abs().sum() > 0


def test_stones_do_not_train_the_students_classifier():
    setup = Setup("block_kd")
    losses = setup.losses()
    stones = losses.task["stones_task"] + losses.distill["stones_kd"] + losses.distill["stones_cross"]
    *body, weight, bias = setup.student.parameters()
    gradients = torch.autograd.grad(stones, [*body, weight, bias], allow_unused=True)
    assert all(g is not None for g in gradients[:-2]) and gradients[-2] is None and gradients[-1] is None


OF_A_ZOO = [
    *(name for name in networks.names() if networks.modality_of(name) == "images"),
    *("timm:test_vit", "timm:test_convnext", "torchvision:mobilenet_v2"),
]


@pytest.mark.parametrize("name", OF_A_ZOO)
def test_the_last_stone_is_the_whole_backbone(name: str):
    """All that has weights before the pooling, but a normalisation that closes it, learns by the last stone alone."""
    with torch.device("meta" if name in networks.names() else "cpu"):  # what depends on what, without computing it
        student, teacher = (build_network(name, CLASSES, (3, 32, 32)) for _ in range(2))
        teacher.requires_grad_(False).eval()
        method = kd_methods.build("block_kd", student, teacher, DataInfo(100, CLASSES))
        outputs = student(student.example(), fields=method.needs.student)
        (stone,) = method.stones(outputs, [len(method.units)])
    names, parameters = zip(*student.module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(stone.sum(), [*parameters, *method.connectors.parameters()], allow_unused=True)
    missed = {name for name, gradient in zip(names, gradients, strict=False) if gradient is None}
    backbone = student.used(until=student.layout.last_map)
    norms = {
        f"{key}.{kind}" for key, child in student.module.named_modules() if "Norm" in type(child).__name__
        for kind in ("weight", "bias")
    }  # fmt: skip
    assert not (backbone & missed) - norms
    classifier = teacher.used(after=teacher.layout.last_map)
    assert teacher.used(after=method.units[-1]) - classifier <= norms, "the teacher's part of the last stone"


def test_the_last_stone_is_the_whole_encoder():
    layout = build_network("bert_l4_h64", 2).layout
    assert layout.blocks[-1] == layout.last_map


def test_sampled_stones_follow_the_global_generator():
    setup = Setup("block_kd", {"sample_stones": 1})

    def draws(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return [setup.method._sampled([1, 2, 3]) for _ in range(20)]

    assert draws(1) == draws(1) != draws(2)
    assert {stone for drawn in draws(1) for stone in drawn} == {1, 2, 3}


def test_batch_statistics_in_the_tails():
    """As a teacher in training mode would compute, but each stone by itself and with the buffers left alone."""
    setup = Setup("block_kd", {"teacher_bn": "batch"})
    setup.method.eval()
    student, _ = setup.outputs()
    stones = setup.method.stones(student, [1, 2, 3], batch_statistics=True)
    training = copy.deepcopy(setup.teacher).train()
    for i, z in enumerate(stones, 1):
        feature = setup.method.connectors[str(i)](student.blocks[i - 1])
        expected = training.resume(setup.teacher.layout.blocks[i - 1], feature)
        assert torch.allclose(z, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(stones[0], setup.method.stones(student, [1])[0], rtol=1e-2)


@pytest.mark.parametrize(
    ("warmup_on", "scaled"), [("gamma", {"cross"}), ("beta_gamma", {"cross", "kd"})], ids=["gamma", "beta_gamma"]
)
def test_warm_up(warmup_on: str, scaled: set[str]):
    full = Setup("block_kd").losses().terms()
    warm = Setup("block_kd", {"warmup": 4.0, "warmup_on": warmup_on}).losses().terms()
    for key, term in full.items():
        factor = 0.25 if key.removeprefix("stones_") in scaled else 1.0
        assert warm[key].item() == pytest.approx(factor * term.item(), rel=1e-6), key


@pytest.mark.parametrize(
    ("schedule", "arrived"),
    [
        ("together", [[1, 2, 3]] * 4),
        ("deep_first", [[3], [3], [2, 3], [1, 2, 3]]),
        ("shallow_first", [[1], [1], [1, 2], [1, 2, 3]]),
    ],
)
def test_stones_that_come_in_one_by_one(schedule: str, arrived: list[list[int]]):
    setup = Setup("block_kd", {"stone_schedule": schedule, "stone_epochs": 30.0})
    student, teacher = setup.outputs()
    for epoch, stones in zip((1, 30, 31, 61), arrived, strict=True):
        assert setup.method._arrived(Progress(epoch, 240)) == stones
        alone = Setup("block_kd", {"active_stones": tuple(stones)})
        for one in (setup, alone):
            torch.manual_seed(3)
            for parameter in one.method.parameters():
                torch.nn.init.constant_(parameter, 0.05)
        totals, expected = (
            one.method.losses(student, teacher, setup.batch, Progress(epoch, 240)).total() for one in (setup, alone)
        )
        assert totals.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_stones_task_loss_has_a_factor_of_its_own():
    full, half, none = (Setup("block_kd", {"stone_task": factor}).losses() for factor in (1.0, 0.5, 0.0))
    assert torch.equal(full.task["task"], none.task["task"])
    assert half.task["stones_task"].item() == pytest.approx(full.task["stones_task"].item() / 2, rel=1e-6)
    assert none.task["stones_task"].item() == 0
    assert all(torch.equal(none.distill[key], term) for key, term in full.distill.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"active_stones": (4,)}, "stones 1 to 3"),
        ({"active_stones": (0,)}, "no stone 0"),
        ({"active_stones": (1,), "sample_stones": 2}, "only 1 stones"),
        ({"connector": "identity"}, "use 'conv1x1'"),
    ],
    ids=str,
)
def test_block_kd_refuses(values: dict, message: str):
    with pytest.raises(UserError, match=message):
        Setup("block_kd", values, ("vgg8", "resnet8"))
