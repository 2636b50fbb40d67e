"""What methods make of mixed images: soft labels reach the task loss; which methods need one class says the card."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from helpers.method_setup import CLASSES, NAMES, Setup, each_case, network
from torch import Tensor

import kd_methods
from benchmarks.cli import descriptions
from kd_methods import Distiller, registry
from kd_methods.contract import Losses

ONLY_WITH: dict[str, dict[str, Any]] = {
    **{key: {"distance": "dkd"} for key in ("block_kd", "block_kd.lite")},
    **{key: {"intermediate": True} for key in ("letkd1", "quest")},
}
"""Methods that need one class under settings other than their defaults."""


def shares() -> Tensor:
    return torch.randn(6, CLASSES, generator=torch.Generator().manual_seed(3)).softmax(1)


def terms(setup: Setup, labels: Tensor, soft: Tensor | None) -> Losses:
    batch, setup.batch = setup.batch, replace(setup.batch, labels=labels, soft_labels=soft)
    losses = setup.losses()
    setup.batch = batch
    return losses


@each_case
def test_which_methods_need_one_class_stands_on_their_cards(name: str, values: dict[str, Any]):
    """With the same soft labels, other classes change the terms of those whose card says so, and of no other."""
    setup = Setup(name, values)
    y = setup.batch.labels
    one, other = (terms(setup, labels, shares()).terms() for labels in (y, (y + 3) % CLASSES))
    same = all(torch.equal(one[key], other[key]) for key in one)
    needs = bool(kd_methods.card(name).hard_labels) and ONLY_WITH.get(name, {}).items() <= values.items()
    assert same != needs, "its card says otherwise"


@each_case
def test_soft_labels_reach_the_task_loss(name: str, values: dict[str, Any]):
    """Where a method has a task loss: with one share of 1 it is that of the label, with others another one."""
    setup = Setup(name, values)
    y = setup.batch.labels
    hard = terms(setup, y, None)
    alike, mixed = terms(setup, y, F.one_hot(y, CLASSES).float()), terms(setup, y, shares())
    for key, value in hard.task.items():
        assert torch.allclose(alike.task[key], value, rtol=1e-4), key
        assert not value.any() or not torch.allclose(mixed.task[key], value), key
    assert all(term.isfinite() for term in mixed.terms().values())


def test_the_students_task_loss_is_torchs():
    setup = Setup("student")
    losses = terms(setup, setup.batch.labels, shares())
    torch.manual_seed(11)
    logits = setup.student(setup.batch.inputs, fields=()).logits
    assert torch.allclose(losses.total(), F.cross_entropy(logits, shares()))


def test_wsld_weighs_by_the_soft_labels():
    setup = Setup("wsld")
    y = setup.batch.labels
    hard, mixed = terms(setup, y, None), terms(setup, y, shares())
    assert not torch.allclose(hard.distill["wsld"], mixed.distill["wsld"])


def test_the_card_says_it_in_one_line():
    lines = descriptions.method("dkd").splitlines()
    (line,) = (line for line in lines if "one class an image" in line)
    assert line.endswith("of a mixed image the class with the larger share")
    assert "one class an image" not in descriptions.method("kd")
    assert registry.card("crd+dkd").hard_labels.count(":") == 2
    assert all("\n" not in kd_methods.card(name).hard_labels for name in NAMES)


def test_a_distiller_takes_soft_labels():
    """As timm's Mixup makes them: the task loss has them, a term that needs one class the largest share."""
    x = torch.randn(6, 3, 16, 16)
    kd = Distiller(
        "dkd",
        network("resnet8", "student"),
        network("resnet14", "teacher"),
        num_classes=CLASSES,
        input_shape=(3, 16, 16),
    )
    kd.eval()
    soft = shares()
    mixed, hard = kd(x, soft), kd(x, soft.argmax(1))
    assert torch.equal(mixed.distill["dkd"], hard.distill["dkd"])
    assert torch.allclose(mixed.task["task"], F.cross_entropy(kd.student(x).logits, soft))
